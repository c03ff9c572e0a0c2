"""A scene before physics: rigid bodies in a room, perhaps a cloth, and the MJCF text that the engine compiles.

Lengths are in meters, angles in degrees, z is up, and the action runs along x. Two streams of draws feed a scene:

- `draws` for everything that decides the outcome. Balancing redraws it until the label is the wanted one.
- `look` for everything that must not reveal the outcome: release frame, colors, textures, room, distractors, camera. It is
  the same for every redraw of a clip, so none of these can depend on the label.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal
from xml.etree import ElementTree

from physion.simulation.draws import Draws
from physion.simulation.materials import PALETTE, Color, Material, draw_object_material, draw_room

FPS = 30
SUBSTEPS = 8
AGENT, PATIENT = "agent", "patient"

Vector = tuple[float, float, float]
Velocity = tuple[float, float, float, float, float, float]
"""Linear velocity in m/s in the world, then angular velocity in rad/s in the body's own frame."""

# Ray casting distinguishes what may move from what is static by these geom groups.
STATIC_GROUP, MOVING_GROUP = 0, 1


@dataclass(frozen=True)
class Geom:
    """One convex piece of a rigid body, placed relative to the body."""

    shape: Literal["sphere", "box", "cylinder", "capsule", "cone", "wedge"]
    size: tuple[float, ...] = ()
    """MuJoCo's half sizes; empty for a cone or wedge."""
    position: Vector = (0.0, 0.0, 0.0)
    euler: Vector = (0.0, 0.0, 0.0)
    vertices: tuple[Vector, ...] = ()
    """For a cone or wedge: points whose convex hull is the solid."""


@dataclass(frozen=True)
class Contact:
    """How a body's surface behaves in contact."""

    friction: float = 0.6
    rolling: float = 0.001
    damping_ratio: float = 1.0
    """1 does not bounce, 0.1 bounces high."""
    slippery: bool = False
    """Whether this friction wins over a rougher partner's; the engine otherwise takes the larger of the two."""


@dataclass(frozen=True)
class Scenario:
    """A recipe for scenes of one kind."""

    build: Callable[[Scene], None]
    release: tuple[int, int]
    """Range of the frame at which the frozen world starts to move."""
    settle: float = 0.0
    """Seconds of physics before frame 0, for stacks that must come to rest."""
    elevation: tuple[float, float] = (13.0, 30.0)
    """Range of the camera's height above the horizon, degrees."""


@dataclass
class Scene:
    """The scene under construction."""

    scenario: Scenario
    draws: Draws
    look: Draws
    materials: dict[str, Material] = field(default_factory=dict)
    """By body name."""
    shapes: dict[str, str] = field(default_factory=dict)
    """By body name: its geom's shape, `cloth`, or `compound` if it has several geoms."""
    velocities: dict[str, Velocity] = field(default_factory=dict)
    """At release, by body name."""
    framed: list[str] = field(default_factory=list)
    """The bodies the camera must show."""
    has_cloth: bool = False

    def __post_init__(self) -> None:
        self.release = self.look.integer(*self.scenario.release)
        self.camera_side = self.look.sign()
        self.room = draw_room(self.look, self.camera_side)
        self._colors = self.look.shuffled(PALETTE)
        self._assets = ElementTree.Element("asset")
        self._world = ElementTree.Element("worldbody")

    def color(self) -> Color:
        """The next distractor color; no two bodies share one until all are used."""
        self._colors.append(self._colors.pop(0))
        return self._colors[-1]

    def material(self, color: Color | None = None) -> Material:
        """A random texture, in the given color or the next one."""
        return draw_object_material(self.look, color or self.color())

    def add_body(
        self,
        name: str,
        geoms: Sequence[Geom],
        position: Vector,
        euler: Vector = (0.0, 0.0, 0.0),
        *,
        material: Material | None = None,
        static: bool = False,
        framed: bool = True,
        velocity: Velocity | None = None,
        density: float = 500.0,
        contact: Contact | None = None,
        drag: float = 0.0,
    ) -> None:
        """Add a rigid body made of `geoms`: density in kg/m3, drag in N s/m on its free joint."""
        contact = contact or Contact()
        body = ElementTree.SubElement(self._world, "body", name=name, pos=_text(position), euler=_text(euler))
        if not static:
            ElementTree.SubElement(body, "joint", type="free", damping=f"{drag:.6g}")
        for number, geom in enumerate(geoms):
            attributes = {
                "name": f"{name}.{number}",
                "type": "mesh" if geom.vertices else geom.shape,
                "pos": _text(geom.position),
                "euler": _text(geom.euler),
                "density": f"{density:.6g}",
                "friction": _text((contact.friction, 0.005, contact.rolling)),
                "priority": str(int(contact.slippery)),
                "solref": _text((0.012, contact.damping_ratio)),
                # Only balls roll: the two extra friction dimensions cost solver time on everything else.
                "condim": "6" if geom.shape == "sphere" else "3",
                "group": str(STATIC_GROUP if static else MOVING_GROUP),
            }
            if geom.vertices:
                points = _text([x for vertex in geom.vertices for x in vertex])
                ElementTree.SubElement(self._assets, "mesh", name=f"{name}.{number}", vertex=points)
                attributes["mesh"] = f"{name}.{number}"
            else:
                attributes["size"] = _text(geom.size)
            ElementTree.SubElement(body, "geom", attributes)
        self.materials[name] = material or self.material()
        self.shapes[name] = geoms[0].shape if len(geoms) == 1 else "compound"
        if velocity is not None:
            self.velocities[name] = velocity
        if framed:
            self.framed.append(name)

    def add_cloth(self, position: Vector, euler: Vector, *, side: float, vertices: int, friction: float) -> None:
        """Add the agent as a square cloth of `vertices` x `vertices` points whose edges keep their length."""
        spacing = side / (vertices - 1)
        cloth = ElementTree.SubElement(
            self._world,
            "flexcomp",
            name=AGENT,
            type="grid",
            dim="2",
            count=f"{vertices} {vertices} 1",
            spacing=_text((spacing, spacing, 0.1)),
            pos=_text(position),
            euler=_text(euler),
            radius="0.012",
            mass="0.3",
        )
        ElementTree.SubElement(cloth, "edge", equality="true", damping="0.02")
        ElementTree.SubElement(
            cloth, "contact", selfcollide="none", condim="3", solref="0.01 1", friction=_text((friction, 0.005, 0.0001))
        )
        self.shapes[AGENT] = "cloth"
        self.has_cloth = True

    def mjcf(self) -> str:
        """The scene as the engine's XML."""
        root = ElementTree.Element("mujoco")
        ElementTree.SubElement(root, "compiler", angle="degree")
        # The exact solver of rigid scenes is cubic in a cloth's hundreds of degrees of freedom.
        solver = {"solver": "CG", "iterations": "15", "tolerance": "1e-6"} if self.has_cloth else {"iterations": "50"}
        option = {"timestep": f"{1 / (FPS * SUBSTEPS):.9g}", "integrator": "implicitfast"}
        ElementTree.SubElement(root, "option", option | solver)
        ElementTree.SubElement(root, "size", memory="64M")
        root.append(self._assets)
        world = ElementTree.SubElement(root, "worldbody")
        ElementTree.SubElement(world, "geom", name="floor", type="plane", size="6 6 .1", friction="0.8 0.005 0.0001", group="0")
        for number, (x, y) in enumerate(((-4.5, 0.0), (4.5, 0.0), (0.0, -4.5), (0.0, 4.5))):
            wall = {"name": f"wall.{number}", "pos": _text((x, y, 0.0)), "zaxis": _text((-x, -y, 0.0))}
            wall |= {"type": "plane", "size": "6 6 .1", "contype": "0", "conaffinity": "0", "group": "0"}
            ElementTree.SubElement(world, "geom", wall)
        world.extend(self._world)
        return ElementTree.tostring(root, encoding="unicode")


def _text(numbers: Sequence[float]) -> str:
    return " ".join(f"{number:.6g}" for number in numbers)
