"""Names of environments: which there are, what a misspelt one was meant to be, which extra installs a missing one."""

import importlib
import importlib.util
import re

import gymnasium as gym

from rl_runner.config.problems import closest

# What ids begin with that are registered only when a module is imported: (module, extra, preset).
NAMESPACES = {
    "ALE/": ("ale_py", "atari", "atari"),
    "MinAtar/": ("minatar.gym", "minatar", "minatar"),
    "MiniGrid-": ("minigrid", "minigrid", "minigrid"),
    "BabyAI-": ("minigrid", "minigrid", "minigrid"),
}
# Where the code of registered ids lies, and what it imports in turn: (module, extra).
FAMILIES = {"gymnasium.envs.mujoco": ("mujoco", "mujoco"), "gymnasium.envs.box2d": ("Box2D", "box2d")}

OWN = "; if a package of yours registers it, name that in plugins=[...]"


def known_ids(typed: str | None = None) -> list[str]:
    """All ids that could be typed on this machine.

    With `typed`, the beginning of one, a family is imported only if it is that one's; the others are listed by prefix.
    """
    families = {prefix for prefix, (module, *_) in NAMESPACES.items() if installed(module)}
    meant = {prefix for prefix in families if typed is None or typed.startswith(prefix)}
    for prefix in meant:
        _register(prefix)
    return sorted({*gym.registry, *(families - meant)})


def preset_of(env_id: str) -> str | None:
    """The name of the preset for an id's family."""
    return next((preset for prefix, (_, _, preset) in NAMESPACES.items() if env_id.startswith(prefix)), None)


def _register(prefix: str) -> None:
    module = importlib.import_module(NAMESPACES[prefix][0])
    if not any(name.startswith(prefix) for name in gym.registry):  # as MinAtar's, once it is imported
        module.register_envs()
    if prefix == "ALE/":  # which greets everybody on the terminal
        module.ALEInterface.setLoggerMode(module.LoggerMode.Error)


def problem(env_id: str) -> str | None:
    """Why there is no such environment here and what to type instead, or None if there is one."""
    module, _, name = env_id.rpartition(":")
    if module:
        from rl_runner.envs.process import contained, one_line  # imports torch, which tab completion does without

        try:
            with contained(module, lambda error: ImportError(one_line(error))):
                importlib.import_module(module)
        except ImportError as error:
            return f"env={env_id}: importing {module} fails ({error})"
    if prefix := next((prefix for prefix in NAMESPACES if name.startswith(prefix)), None):
        library, extra, _ = NAMESPACES[prefix]
        if not installed(library):
            return needs(env_id, library.partition(".")[0], extra)
        _register(prefix)
    if name not in gym.registry:
        return f"env={env_id}: no such environment{suggestion(name) or OWN}"
    entry_point = str(gym.registry[name].entry_point)
    for package, (library, extra) in FAMILIES.items():
        if entry_point.startswith(package) and not installed(library):
            return needs(env_id, library, extra)
    return None


def suggestion(name: str) -> str:
    """`; did you mean X?` with the newest version of the same name or of the most similar one, or nothing."""
    in_order = sorted(gym.registry.values(), key=lambda spec: spec.version or 0)
    newest = {re.sub(r"-v\d+$", "", spec.id): spec.id for spec in in_order}
    match = closest(re.sub(r"-v\d+$", "", name), newest)
    return f"; did you mean {newest[match]}?" if match else ""


def installed(module: str) -> bool:
    return importlib.util.find_spec(module.partition(".")[0]) is not None


def needs(env_id: str, library: str, extra: str) -> str:
    return f"env={env_id} needs {library}, which is not installed: pip install 'rl-runner[{extra}]'"
