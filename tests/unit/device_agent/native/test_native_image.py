"""Program images: the same bits as the executor, and no damaged or hostile one gets past the check."""

from __future__ import annotations

import ctypes
import itertools
import random
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_agent.contracts import ContractError, NetworkPlan
from device_agent.native.executor import NativeNetwork
from device_agent.native.image import ImageNetwork, check_image, with_checksum
from device_agent.native.library import Kind, Step, load_library
from device_agent.synthesis import synthesize_input
from tests.unit.device_agent.native import image_samples as samples
from tests.unit.device_agent.native.test_native_network import networks, residual_network

LIBRARY = load_library()
BACKENDS = [backend.name for backend in LIBRARY.backends if backend.is_supported]
IMAGE = samples.image_of(samples.every_kind())
ALL_KINDS = {value for name, value in vars(Kind).items() if not name.startswith("_")}


def refusal(image: bytes) -> str:
    """What the check says about an image that is not sound."""
    with pytest.raises(ContractError, match="not a sound program image") as caught:
        check_image(image)
    return str(caught.value)


@settings(max_examples=40, deadline=None)
@given(plan=networks(), seed=st.integers(0, 100), isa=st.sampled_from(BACKENDS))
def test_an_image_gives_the_bits_of_the_executor(plan: NetworkPlan, seed: int, isa: str) -> None:
    executor = NativeNetwork(plan, samples.weights_of(plan), isa=isa, tune=False)
    network = ImageNetwork(executor.image(), isa=isa)
    for offset in range(2):
        x = synthesize_input(plan.input_shape, seed + offset)
        assert network.run(x).tobytes() == executor.run(x).tobytes()


def test_an_image_runs_on_other_instruction_sets_than_it_was_tuned_for() -> None:
    plan = residual_network()
    x = synthesize_input(plan.input_shape, 1)
    for tuned_for in BACKENDS:
        image = NativeNetwork(plan, samples.weights_of(plan), isa=tuned_for, tune=True).image()
        for isa in BACKENDS:
            expected = NativeNetwork(plan, samples.weights_of(plan), isa=isa, tune=False).run(x)
            assert ImageNetwork(image, isa=isa).run(x).tobytes() == expected.tobytes()


def test_an_image_describes_itself() -> None:
    info = check_image(IMAGE)
    assert (info.input.channels, info.input.height, info.input.width) == (6, 9, 9)
    assert (info.output.channels, info.output.height, info.output.width) == (10, 1, 1)
    assert info.name.decode() == "every kind"
    assert info.isa.decode() == BACKENDS[0]
    assert info.num_steps == len(samples.steps(IMAGE))
    long = NetworkPlan(name="ü" * 60, input_shape=(6, 9, 9), ops=samples.every_kind().ops)
    assert check_image(samples.image_of(long)).name.decode() == "ü" * 31


def test_the_samples_have_a_step_of_every_kind() -> None:
    """So that no kind goes without the tests below."""
    assert {step.kind for step in samples.steps(IMAGE)} == ALL_KINDS


def test_the_checksum_is_fnv_1a_over_words() -> None:
    value = 0xCBF29CE484222325
    for (word,) in struct.iter_unpack("<Q", IMAGE[32:]):
        value = (value ^ word) * 0x100000001B3 % (1 << 64)
    assert samples.header(IMAGE, "checksum") == value


def test_the_same_network_gives_the_same_image() -> None:
    assert samples.image_of(samples.every_kind()) == IMAGE


def test_spreading_the_regions_changes_nothing() -> None:
    x = synthesize_input((6, 9, 9), 0)
    assert ImageNetwork(samples.spread(IMAGE)).run(x).tobytes() == ImageNetwork(IMAGE).run(x).tobytes()


# --- damage ---------------------------------------------------------------------------------------------------------


def test_an_image_that_ends_early_is_refused_wherever_it_ends() -> None:
    tables = samples.HEADER_BYTES + 16 * samples.header(IMAGE, "num_regions")
    borders = {0, 1, 8, 191, 192, tables, len(IMAGE) - 1, len(IMAGE) - 64}
    borders |= {region.offset for region in samples.regions(IMAGE)[: samples.header(IMAGE, "num_constants")]}
    borders |= {tables + samples.STEP_BYTES * index for index in range(samples.header(IMAGE, "num_steps") + 1)}
    for num_bytes in sorted(borders | set(range(0, len(IMAGE), 997))):
        assert "shorter" in refusal(IMAGE[:num_bytes])
        # Even one that says so of itself.
        if num_bytes >= samples.HEADER_BYTES and num_bytes % 64 == 0:
            short = IMAGE[:16] + struct.pack("<Q", num_bytes) + IMAGE[24:num_bytes]
            refusal(with_checksum(short))


def test_every_flipped_bit_is_found() -> None:
    rng = random.Random(1)
    for offset in (*range(samples.HEADER_BYTES), *(rng.randrange(len(IMAGE)) for _ in range(300))):
        damaged = bytearray(IMAGE)
        damaged[offset] ^= 1 << rng.randrange(8)
        refusal(bytes(damaged))


HOSTILE_HEADERS = [
    ("magic", 0, "no program image"),
    ("format_version", 2, "another version"),
    ("abi_version", 0, "another version"),
    ("image_bytes", 1 << 63, "shorter"),
    ("image_bytes", len(IMAGE) - 1, "header contradicts"),
    ("image_bytes", 64, "header contradicts"),
    ("workspace_bytes", (1 << 64) - 64, "header contradicts"),
    ("workspace_bytes", 1, "header contradicts"),
    ("workspace_bytes", 64, "a region"),
    ("workspace_bytes", 1 << 40, "a region"),
    ("num_regions", (1 << 32) - 1, "header contradicts"),
    ("num_regions", 1 << 21, "header contradicts"),
    ("num_regions", 0, "header contradicts"),
    ("num_constants", (1 << 32) - 1, "header contradicts"),
    ("num_constants", 0, ""),
    ("num_steps", (1 << 32) - 1, "header contradicts"),
    ("num_steps", 1 << 21, "header contradicts"),
    ("step_bytes", 0, "header contradicts"),
    ("step_bytes", samples.STEP_BYTES + 8, "header contradicts"),
    ("input", 0, "input or the output"),
    ("input", samples.reference(0), "input or the output"),
    ("input", samples.header(IMAGE, "input") + 1, "input or the output"),
    ("input", samples.header(IMAGE, "input") + (1 << 20), "input or the output"),
    ("input", (1 << 64) - 1, "input or the output"),
    ("input_reserved", 1, "input or the output"),
    ("input_channels", 0, "input or the output"),
    ("input_channels", -1, "input or the output"),
    ("input_height", (1 << 31) - 1, "input or the output"),
    ("input_width", 1 << 20, "input or the output"),
    ("output", samples.reference(0), "input or the output"),
    ("output_channels", 1 << 20, "input or the output"),
]


@pytest.mark.parametrize(("name", "value", "reason"), HOSTILE_HEADERS)
def test_hostile_headers_are_refused(name: str, value: int, reason: str) -> None:
    assert reason in refusal(samples.with_header(IMAGE, name, value))


@pytest.mark.parametrize("name", samples.HEADER)
def test_every_header_field_is_checked(name: str) -> None:
    """Values at the borders of each field are refused, or give an image that runs."""
    offset, form = samples.HEADER[name]
    size = struct.calcsize(form)
    for value in (0, 1, 2, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 63), (1 << 64) - 1):
        data = struct.pack("<Q", value)[:size]
        run_if_sound(samples.patched(IMAGE, offset, data))


def test_texts_without_an_end_and_reserved_words_are_refused() -> None:
    assert "header contradicts" in refusal(samples.patched(IMAGE, samples.ISA_OFFSET, b"a" * 16))
    assert "header contradicts" in refusal(samples.patched(IMAGE, samples.NAME_OFFSET, b"a" * 64))
    assert "header contradicts" in refusal(samples.patched(IMAGE, samples.RESERVED_OFFSET + 7, b"\x01"))


@pytest.mark.parametrize("index", [0, 3, -1])
@pytest.mark.parametrize(
    ("offset", "num_bytes"),
    [(0, 64), (1, 64), (1 << 63, 64), (64, 1 << 63), ((1 << 64) - 64, 128), (1 << 20, 0)],
)
def test_hostile_regions_are_refused(index: int, offset: int, num_bytes: int) -> None:
    index %= samples.header(IMAGE, "num_regions")
    assert "a region" in refusal(
        samples.patched(IMAGE, samples.HEADER_BYTES + 16 * index, struct.pack("<2Q", offset, num_bytes))
    )


def run_if_sound(image: bytes) -> bool:
    """Whether the check lets `image` pass; what passes must run."""
    try:
        network = ImageNetwork(image)
    except ContractError:
        return False
    shape = network.info.input
    network.run(np.zeros((shape.channels, shape.height, shape.width), np.float32))
    return True


@pytest.mark.parametrize("kind", sorted(ALL_KINDS))
def test_every_field_of_every_kind_takes_any_value(kind: int) -> None:
    """The check says no, or the step runs. What it reads then is the business of `make test-sanitizers`."""
    for index, (name, c_type) in itertools.product(samples.sample_steps(IMAGE, kind), Step._fields_):
        size = 4 if c_type.__name__ in ("c_int", "c_float") else 8
        values = [1, -1, 1 << 20, -(1 << 31), (1 << 31) - 1] + ([1 << 40, 1 << 62, -(1 << 63)] if size == 8 else [])
        if c_type.__name__ == "c_float":
            continue
        for value in values:
            run_if_sound(samples.with_step(IMAGE, index, **{name: value}))


POINTERS = [name for name, c_type in Step._fields_ if c_type.__name__ == "c_void_p"]


@pytest.mark.parametrize("kind", sorted(ALL_KINDS))
def test_no_pointer_of_any_kind_may_leave_its_region(kind: int) -> None:
    places = samples.regions(IMAGE)
    for index, name in itertools.product(samples.sample_steps(IMAGE, kind), POINTERS):
        value = getattr(samples.steps(IMAGE)[index], name)
        if not value:
            continue
        region = samples.region_of(value)
        for hostile in (
            samples.reference(region, places[region].num_bytes),
            samples.reference(region, places[region].num_bytes + 4),
            samples.reference(len(places)),
            samples.reference((1 << 24) - 2),
            value + 1,
        ):
            reason = refusal(samples.with_step(IMAGE, index, **{name: hostile}))
            assert f"step {index}" in reason
        # Without a residual or a mask, a step computes something else, within its regions.
        if name not in ("second", "mask"):
            refusal(samples.with_step(IMAGE, index, **{name: samples.NULL}))


@pytest.mark.parametrize("kind", sorted(ALL_KINDS))
def test_no_kind_may_write_to_constants(kind: int) -> None:
    index = samples.first_step(IMAGE, kind)
    places = samples.regions(IMAGE)
    largest = max(range(samples.header(IMAGE, "num_constants")), key=lambda i: places[i].num_bytes)
    assert "write" in refusal(samples.with_step(IMAGE, index, output=samples.reference(largest)))


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in (Kind.CONV, Kind.SPARSE_MATVEC) for name in ("offsets", "group_starts", "group_channels")]
    + [(Kind.SPLIT, "phases")],
)
def test_index_lists_are_checked_entry_by_entry_and_cannot_be_written(kind: int, name: str) -> None:
    index = next(i for i, step in enumerate(samples.steps(IMAGE)) if step.kind == kind and getattr(step, name))
    step = samples.steps(IMAGE)[index]
    value = getattr(step, name)
    num_runs = step.num_groups * max(1, step.num_chunks)
    count = {
        "offsets": samples.indices(IMAGE, step.group_starts or 1 << 40)[num_runs] if step.group_starts else 0,
        "group_starts": num_runs + 1,
        "group_channels": step.num_groups,
        "phases": step.stride**2,
    }[name]
    for position in range(count):
        for hostile in (1 << 30, -(1 << 31), (1 << 31) - 1):
            refusal(samples.with_index(IMAGE, value, position, hostile))
    workspace = samples.header(IMAGE, "num_regions") - 1
    biggest = max(
        range(samples.header(IMAGE, "num_constants"), workspace + 1), key=lambda i: samples.regions(IMAGE)[i].num_bytes
    )
    assert "list" in refusal(samples.with_step(IMAGE, index, **{name: samples.reference(biggest)}))


#: Kinds without a window, which read an element before they write it.
IN_PLACE = {
    Kind.ELEMENTWISE, Kind.MULTIPLY, Kind.SIGMOID, Kind.SILU, Kind.HARDSIGMOID, Kind.HARDSWISH,
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(ALL_KINDS - IN_PLACE - {Kind.ZERO}))
def test_no_kind_with_a_window_may_work_in_place(kind: int) -> None:
    """In the largest buffer, so that nothing else is wrong with it."""
    index = samples.first_step(IMAGE, kind)
    places = samples.regions(IMAGE)
    buffers = range(samples.header(IMAGE, "num_constants"), len(places))
    largest = max(buffers, key=lambda i: places[i].num_bytes)
    place = samples.reference(largest, 512)
    assert "write over what it reads" in refusal(samples.with_step(IMAGE, index, input=place, output=place))


def test_an_unknown_kind_is_refused() -> None:
    for kind in (-1, max(ALL_KINDS) + 1, 1 << 30):
        assert "unknown kind" in refusal(samples.with_step(IMAGE, 0, kind=kind))


def test_a_tile_that_the_backend_has_not_is_refused() -> None:
    index = samples.first_step(IMAGE, Kind.CONV)
    for fields in ({"max_vectors": 0}, {"max_vectors": 1000}, {"vector_length": 5}):
        with pytest.raises(ContractError, match="no such tile"):
            ImageNetwork(samples.with_step(IMAGE, index, **fields))


def test_random_damage_with_a_right_checksum_never_gets_further_than_the_check() -> None:
    rng = random.Random(7)
    sound = 0
    tables = samples.HEADER_BYTES + 16 * samples.header(IMAGE, "num_regions")
    end = tables + samples.STEP_BYTES * samples.header(IMAGE, "num_steps")
    for _ in range(1500):
        damaged = bytearray(IMAGE)
        for _ in range(rng.choice((1, 1, 2, 4))):
            # Mostly in the tables, where structure is.
            offset = rng.randrange(32, end) if rng.random() < 0.8 else rng.randrange(32, len(IMAGE))
            damaged[offset] = rng.choice((damaged[offset] ^ 1 << rng.randrange(8), 0, 0xFF, 0x7F, rng.randrange(256)))
        sound += run_if_sound(with_checksum(damaged))
    assert 0 < sound < 1500


def test_memory_and_alignment_are_asked_for() -> None:
    data = np.frombuffer(IMAGE, np.uint8)
    raw = np.zeros(len(data) + 128, np.uint8)
    start = -raw.ctypes.data % 64
    image = raw[start : start + len(data)]
    image[:] = data
    memory_bytes = check_image(IMAGE).memory_bytes
    memory = np.zeros(memory_bytes + 128, np.uint8)
    inside = -memory.ctypes.data % 64 + memory.ctypes.data
    network = ctypes.c_void_p()

    def init(memory_address: int | None, size: int, image_address: int | None, backend: int = -1) -> str:
        code = LIBRARY.network_init(memory_address, size, image_address, len(data), backend, ctypes.byref(network))
        return LIBRARY.error_message(code)

    address = image.ctypes.data
    assert init(inside, memory_bytes, address) == "no error"
    assert "less memory" in init(inside, memory_bytes - 1, address)
    assert "less memory" in init(inside, 0, address)
    assert "multiple of 64" in init(inside + 8, memory_bytes, address)
    assert "null" in init(None, memory_bytes, address)
    assert "null" in init(inside, memory_bytes, None)
    assert "no backend" in init(inside, memory_bytes, address, 99)
    assert "no backend" in init(inside, memory_bytes, address, -2)
    raw[start + 8 : start + 8 + len(data)] = data
    assert "multiple of 64" in init(inside, memory_bytes, address + 8)
