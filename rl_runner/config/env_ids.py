"""Names of environments: which there are, what a misspelt one was meant to be, which extra installs a missing one."""

import importlib
import importlib.util
import re

import gymnasium as gym

from rl_runner.config.problems import closest

# Namespaces that register their ids only when their module is imported: (module, extra).
NAMESPACES = {"ALE": ("ale_py", "atari")}
# Where the code of registered ids lies, and what it imports in turn: (module, extra).
FAMILIES = {"gymnasium.envs.mujoco": ("mujoco", "mujoco"), "gymnasium.envs.box2d": ("Box2D", "box2d")}

OWN = "; if a package of yours registers it, name that in plugins=[...]"


def known_ids() -> list[str]:
    """All ids that could be typed on this machine."""
    for module, _ in NAMESPACES.values():
        if installed(module):
            importlib.import_module(module)
    return sorted(gym.registry)


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
    namespace = NAMESPACES.get(name.partition("/")[0])
    if namespace and not installed(namespace[0]):
        return needs(env_id, *namespace)
    if namespace:
        importlib.import_module(namespace[0])
    if name not in gym.registry:
        return f"env={env_id}: no such environment{suggestion(name) or OWN}"
    entry_point = str(gym.registry[name].entry_point)
    for prefix, (library, extra) in FAMILIES.items():
        if entry_point.startswith(prefix) and not installed(library):
            return needs(env_id, library, extra)
    return None


def suggestion(name: str) -> str:
    """`; did you mean X?` with the newest version of the same name or of the most similar one, or nothing."""
    in_order = sorted(gym.registry.values(), key=lambda spec: spec.version or 0)
    newest = {re.sub(r"-v\d+$", "", spec.id): spec.id for spec in in_order}
    match = closest(re.sub(r"-v\d+$", "", name), newest)
    return f"; did you mean {newest[match]}?" if match else ""


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def needs(env_id: str, library: str, extra: str) -> str:
    return f"env={env_id} needs {library}, which is not installed: pip install 'rl-runner[{extra}]'"
