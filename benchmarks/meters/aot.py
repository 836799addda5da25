"""Compiles a launch plan for a GPU that is not there, and reads what came out of the cubin."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from fused_resnet.backends.triton.plan import LaunchPlan

# Instructions that multiply matrices, by the name of their SASS opcode.
MATRIX_OPCODES = ("HGMMA", "HMMA", "UTCHMMA", "UTCQMMA")
TMA_OPCODES = ("UTMALDG", "UTMASTG", "UBLKCP")


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel needs, and what its main loop consists of."""

    registers: int
    shared_bytes: int
    stack_bytes: int
    local_bytes: int
    spill_loads: int
    spill_stores: int
    matrix_opcode: str
    matrix_instructions: int
    tma_instructions: int
    async_copies: int
    loop_instructions: int
    loop_matrix_instructions: int
    wait_depth: int | None

    @property
    def spills(self) -> bool:
        return bool(self.local_bytes or self.spill_loads or self.spill_stores)

    def as_dict(self) -> dict:
        return asdict(self) | {"spills": self.spills}


def signature_of(plan: LaunchPlan, kernel) -> tuple[dict[str, str], dict[str, object], dict]:
    """(signature, constants, attributes) as Triton's launcher would derive them from the plan's arguments.

    Pointers are taken to be multiples of 16 bytes, as torch's allocations are.
    """
    constants = dict(plan.constexprs) | {name: None for name, element in plan.pointers.items() if element is None}
    signature, attributes = {}, {}
    for position, parameter in enumerate(kernel.params):
        name = parameter.name
        value = plan.scalars.get(name)
        aligned = name in plan.pointers
        if isinstance(value, int) and not parameter.do_not_specialize:
            aligned = value % 16 == 0
            if value == 1:
                constants[name] = 1
        if name in constants:
            signature[name] = "constexpr"
            continue
        if name in plan.boxes:
            block = ", ".join(str(extent) for extent in plan.boxes[name].block)
            signature[name] = f"tensordesc<{plan.pointers['y_ptr']}[{block}]>"
        elif name in plan.pointers:
            signature[name] = f"*{plan.pointers[name]}"
        else:
            integer = "i32" if isinstance(value, int) and value < 1 << 31 else "i64"
            signature[name] = "fp32" if isinstance(value, float) else integer
        if aligned:
            attributes[(position,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def compile_plan(plan: LaunchPlan, arch: int):
    """Triton's compiled kernel for sm_`arch`; needs no GPU, and TRITON_INTERPRET unset."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fused_resnet.backends.triton.kernels import KERNELS

    kernel = KERNELS[plan.kernel]
    signature, constants, attributes = signature_of(plan, kernel)
    options = {"num_warps": plan.num_warps, "num_stages": plan.num_stages, "enable_fp_fusion": True}
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def resources_of(compiled) -> Resources:
    """Registers, memory and the main loop of a compiled kernel, from its cubin."""
    usage, sass = _disassemble(compiled.asm["cubin"])
    return read_resources(usage, sass, lambda static: max(static, compiled.metadata.shared))


def read_resources(usage: str, sass: str, shared_bytes: Callable[[int], int]) -> Resources:
    """What cuobjdump says of one kernel under `-res-usage` and `-sass`; `shared_bytes` of its static shared memory."""
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", usage)
    registers, stack, static_shared, local = (int(number) for number in found.groups())
    instructions = _instructions(sass)
    opcodes = Counter(_opcode(text) for _, text in instructions)
    matrix = next((name for name in MATRIX_OPCODES if opcodes[name]), "none")
    loop = _main_loop(instructions, matrix)
    return Resources(
        registers=registers,
        shared_bytes=shared_bytes(static_shared),
        stack_bytes=stack,
        local_bytes=local,
        spill_loads=opcodes["LDL"],
        spill_stores=opcodes["STL"],
        matrix_opcode=matrix,
        matrix_instructions=opcodes[matrix],
        tma_instructions=sum(opcodes[name] for name in TMA_OPCODES),
        async_copies=opcodes["LDGSTS"],
        loop_instructions=len(loop),
        loop_matrix_instructions=sum(_opcode(text) == matrix for text in loop),
        wait_depth=_wait_depth(loop or [text for _, text in instructions]),
    )


def _disassemble(cubin: bytes) -> tuple[str, str]:
    import triton.backends.nvidia as nvidia

    tool = Path(nvidia.__file__).with_name("bin") / "cuobjdump"
    descriptor, path = tempfile.mkstemp(suffix=".cubin")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(cubin)
        return tuple(
            subprocess.run([tool, option, path], check=True, capture_output=True, text=True).stdout
            for option in ("-res-usage", "-sass")
        )
    finally:
        os.unlink(path)


def _instructions(sass: str) -> list[tuple[int, str]]:
    """(address, text) of each instruction of a SASS listing."""
    return [(int(at, 16), text) for at, text in re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", sass, re.MULTILINE)]


def _opcode(text: str) -> str:
    return re.sub(r"^@!?U?P\w+\s+", "", text).split()[0].split(".")[0]


def _main_loop(instructions: list[tuple[int, str]], matrix: str) -> list[str]:
    """The shortest loop that multiplies matrices: from the target of a conditional backward branch to the branch.

    Empty where there is one step, or all are unrolled.  An unconditional branch back is the return from a wait that had
    to be retried.
    """
    best: list[str] = []
    for address, text in instructions:
        branch = re.search(r"\bBRA\S*\s+(?:!?U?P\d+, )?.*?0x([0-9a-f]+)", text)
        conditional = re.search(r"^@|\bBRA\S*\s+!?U?P\d", text)
        if branch is None or conditional is None or int(branch[1], 16) >= address:
            continue
        body = [inner for at, inner in instructions if int(branch[1], 16) <= at <= address]
        if any(_opcode(inner) == matrix for inner in body) and (not best or len(body) < len(best)):
            best = body
    return best


def _wait_depth(instructions: list[str]) -> int | None:
    """How many groups of wgmma the most relaxed wait leaves in flight; None where nothing waits for wgmma."""
    waits = [re.search(r"WARPGROUP\.DEPBAR\.LE gsb\d+, 0x([0-9a-f]+)", text) for text in instructions]
    return max((int(wait[1], 16) for wait in waits if wait), default=None)
