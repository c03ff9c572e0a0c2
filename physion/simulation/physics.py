"""From a scene to a trajectory and its label: stepping the engine, reading its contacts, balancing the labels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import mujoco
import numpy as np

from physion.simulation import SCENARIOS
from physion.simulation.camera import View, aim_camera
from physion.simulation.draws import Draws
from physion.simulation.scenarios import RECIPES
from physion.simulation.scene import AGENT, FPS, PATIENT, SUBSTEPS, Scene

FRAMES = 150
OBSERVED_FRAMES = 45

# Streams of draws: the values drawn from different streams must be independent.
_OUTCOME, _LOOK, _CAMERA, _BALANCE = range(4)

# A world this slow for this many frames has come to rest (m/s and rad/s); its remaining frames repeat.
_REST_SPEED, _REST_FRAMES = 0.01, 6


# Share of the picture in frame 0; 16 of 64 x 64 pixels.
_CLEARLY_SEEN = 0.004

# About every second draw works; this many failures in a row mean that a scenario is broken.
_MAX_ATTEMPTS = 200

# The engine resets a diverging world silently, so its warnings must be read.
_DIVERGED = (mujoco.mjtWarning.mjWARN_BADQPOS, mujoco.mjtWarning.mjWARN_BADQVEL, mujoco.mjtWarning.mjWARN_BADQACC)


@dataclass
class Trajectory:
    """What happens in one clip, before any picture of it."""

    scene: Scene
    model: mujoco.MjModel
    states: np.ndarray
    """Generalized positions, float64 [T=150, nq]."""
    velocities: np.ndarray
    """Generalized velocities, float64 [T=150, nv]."""
    cloth: np.ndarray | None
    """The cloth's vertices in the world, float32 [T, V, 3], meters; None in a rigid scene."""
    contacts: dict[tuple[str, str], int]
    """By pair of bodies (`BodyContacts.names`, in their order): the first frame at or after their first contact."""
    camera_key: tuple[int, ...]
    """Key of the draws that place the camera: the same for every redraw of a clip."""

    @property
    def first_contact(self) -> int | None:
        """The first frame at or after the first contact of agent and patient; None if there is none."""
        return self.contacts.get((AGENT, PATIENT))

    @property
    def label(self) -> bool:
        """Whether agent and patient touch at any time in the clip."""
        return self.first_contact is not None

    @cached_property
    def view(self) -> View:
        """The camera's position, and how well it sees."""
        cloth = None if self.cloth is None else self.cloth[0]
        observed = self.states[:OBSERVED_FRAMES]
        return aim_camera(self.scene, self.model, observed, cloth, Draws(*self.camera_key))


class BodyContacts:
    """When each pair of bodies first touches, read from the engine's contact list."""

    def __init__(self, model: mujoco.MjModel) -> None:
        bodies = [model.geom(geom).name.partition(".")[0] for geom in range(model.ngeom)]
        others = dict.fromkeys(name for name in bodies if name not in (AGENT, PATIENT))
        self.names = (AGENT, PATIENT, *others)
        """Agent, patient, then the others, including `floor` and `wall`."""
        # One more entry than geoms: index -1 stands for "no geom", which the contacts of a cloth (the agent) report.
        numbers = np.array([*(self.names.index(name) for name in bodies), 0])
        self._pair = np.minimum.outer(numbers, numbers) * len(self.names) + np.maximum.outer(numbers, numbers)
        self._first = np.full(len(self.names) ** 2, -1)

    def see(self, data: mujoco.MjData, frame: int) -> None:
        """Record the latest contacts; new ones count from `frame` on."""
        if not data.ncon:
            return
        # This runs in every substep, and reading each of these attributes copies it out of the engine.
        contacts = data.contact
        geoms = contacts.geom
        pairs = self._pair[geoms[:, 0], geoms[:, 1]]
        new = self._first[pairs] < 0
        if new.any():
            self._first[pairs[new & (contacts.dist <= 0)]] = frame

    @property
    def of_agent_and_patient(self) -> int | None:
        """The frame of their first contact."""
        return int(self._first[1]) if self._first[1] >= 0 else None

    def frames(self) -> dict[tuple[str, str], int]:
        """By pair of names, the frame of the first contact."""
        found = np.flatnonzero(self._first >= 0).tolist()
        count = len(self.names)
        return {(self.names[pair // count], self.names[pair % count]): int(self._first[pair]) for pair in found}


def draw_trajectory(scenario: str, seed: int, index: int, attempt: int = 0, *, contact_from: int = 0) -> Trajectory | None:
    """Simulate one draw of a clip, unbalanced.

    Returns None for an invalid draw: agent and patient touch while the scene settles or before frame `contact_from`, or the
    engine diverges. A draw is abandoned as soon as it is known to be invalid.
    """
    number = SCENARIOS.index(scenario)
    outcome = Draws(seed, number, index, _OUTCOME, attempt)
    scene = Scene(RECIPES[scenario], outcome, Draws(seed, number, index, _LOOK))
    RECIPES[scenario].build(scene)
    return simulate(scene, (seed, number, index, _CAMERA), contact_from=contact_from)


def wanted_label(scenario: str, seed: int, index: int) -> bool:
    """The label that balancing gives a clip: one of clips 2k and 2k+1 is positive, decided by a coin toss."""
    first_of_pair = Draws(seed, SCENARIOS.index(scenario), index // 2, _BALANCE).chance(0.5)
    return first_of_pair != (index % 2 == 1)


def balanced_trajectory(scenario: str, seed: int, index: int) -> Trajectory:
    """Draw clip `index` until it poses the question and has the wanted answer.

    Draws whose answer falls within the observed frames, or that hide agent or patient in the first frame, pose no question and
    are redrawn, whatever label is wanted.
    """
    wanted = wanted_label(scenario, seed, index)
    contact_from = OBSERVED_FRAMES if wanted else FRAMES
    for attempt in range(_MAX_ATTEMPTS):
        trajectory = draw_trajectory(scenario, seed, index, attempt, contact_from=contact_from)
        if trajectory is not None and trajectory.label == wanted and trajectory.view.seen >= _CLEARLY_SEEN:
            return trajectory
    raise AssertionError(f"{scenario} {seed} {index}: no draw of {_MAX_ATTEMPTS} has label {wanted}")


def simulate(scene: Scene, camera_key: tuple[int, ...], *, contact_from: int = 0) -> Trajectory | None:
    """Run a scene for 150 frames; None if `draw_trajectory` calls it invalid.

    The world is frozen until the release frame, when the bodies get their velocities, so that the observed frames show the
    question and not its answer.
    """
    model = mujoco.MjModel.from_xml_string(scene.mjcf())
    data = mujoco.MjData(model)
    contacts = BodyContacts(model)
    for _ in range(round(scene.scenario.settle * FPS * SUBSTEPS)):
        mujoco.mj_step(model, data)
        contacts.see(data, 0)
        if contacts.of_agent_and_patient is not None:
            return None
    data.qvel[:] = 0
    mujoco.mj_forward(model, data)
    contacts.see(data, 0)
    if contacts.of_agent_and_patient is not None:
        return None

    states, velocities = np.empty((FRAMES, model.nq)), np.empty((FRAMES, model.nv))
    cloth = np.empty((FRAMES, model.nflexvert, 3), np.float32) if scene.has_cloth else None
    frames_at_rest = 0
    for frame in range(FRAMES):
        if frame == scene.release:
            _launch(scene, model, data)
        states[frame], velocities[frame] = data.qpos, data.qvel
        if cloth is not None:
            cloth[frame] = data.flexvert_xpos
        if frame < scene.release or frames_at_rest >= _REST_FRAMES:
            continue
        # The last frame's state is only displayed: what follows it is not in the clip.
        for substep in range(SUBSTEPS if frame + 1 < FRAMES else 1):
            mujoco.mj_step(model, data)
            # A step computes the contacts of the state it starts from.
            contacts.see(data, frame if substep == 0 else frame + 1)
            touched = contacts.of_agent_and_patient
            if touched is not None and touched < contact_from:
                return None
        if any(data.warning[kind].number for kind in _DIVERGED):
            return None
        frames_at_rest = frames_at_rest + 1 if np.abs(data.qvel).max() < _REST_SPEED else 0
    return Trajectory(scene, model, states, velocities, cloth, contacts.frames(), camera_key)


def _launch(scene: Scene, model: mujoco.MjModel, data: mujoco.MjData) -> None:
    for name, velocity in scene.velocities.items():
        first = model.jnt_dofadr[model.body(name).jntadr[0]]
        data.qvel[first : first + 6] = velocity
