"""The library as one C++ source file and one header, for those who build it into a program of their own.

The kernels are in the file once. It includes itself for each instruction set, inside a namespace and with GCC's target
pragmas, so that one compilation without flags gives a binary that picks the best set at run time. Clang has no such
pragmas: it compiles the kernels for the set that its flags name.
"""

from __future__ import annotations

import re

from device_agent.native.build import SOURCE_DIR, Backend, backends_for

SOURCE_FILE = "kerf_runtime.cpp"
HEADER_FILE = "kerf.h"

#: What a program with a C library has already, and must not get twice.
_LEFT_OUT = frozenset({"memory.cpp", "arm32.cpp"})
_KERNELS = "backend.cpp"
_ABI = "kerf_native.h"
_QUOTED = re.compile(r'^#include "([^"]+)"\n', re.MULTILINE)
_SYSTEM = re.compile(r"^#include (<[^>]+>)\n", re.MULTILINE)
_GUARD = re.compile(r"^#ifndef (KERF_\w+_H)\n#define \1\n", re.MULTILINE)
_MACRO = re.compile(r"^#define (\w+)", re.MULTILINE)


def amalgamated_header() -> str:
    """kerf.h with what it includes."""
    return _expand("kerf.h", set(), keep_guard=True)


def amalgamated_source() -> str:
    """All sources but those that stand in for a C library."""
    have: set[str] = set()
    _expand("kerf.h", have)
    abi = _expand(_ABI, have)
    kernels = _expand(_KERNELS, set(have))
    shared = "".join(
        _expand(path.name, have) for path in sorted(SOURCE_DIR.glob("*.cpp")) if path.name not in _LEFT_OUT | {_KERNELS}
    )
    system = sorted({name for text in (kernels, shared, abi) for name in _SYSTEM.findall(text)} - {"<immintrin.h>"})
    kernels, shared, abi = (_SYSTEM.sub("", text) for text in (kernels, shared, abi))
    macros = sorted(set(_MACRO.findall(kernels)))
    return "\n".join(
        (
            _PREFACE.format(header=HEADER_FILE, source=SOURCE_FILE),
            "#ifndef KERF_BACKEND",
            *(f"#include {name}" for name in system),
            "#if defined(__x86_64__)\n#include <immintrin.h>\n#endif",
            f'#include "{HEADER_FILE}"\n',
            abi,
            "#if defined(__x86_64__) && !defined(__clang__)",
            *map(_self_inclusion, backends_for("x86_64")),
            _backend_list(backends_for("x86_64")),
            "#elif defined(__x86_64__) && defined(__AVX512F__)",
            _only(backends_for("x86_64")[0]),
            "#elif defined(__x86_64__) && defined(__AVX2__)",
            _only(backends_for("x86_64")[1]),
            "#elif defined(__x86_64__)",
            _only(backends_for("x86_64")[2]),
            "#elif defined(__aarch64__)",
            _only(backends_for("aarch64")[0]),
            "#else",
            _only(backends_for("other")[0]),
            "#endif\n",
            shared,
            "#else  // once for each instruction set\n",
            "#define KERF_NAMESPACE_OF2(name) kerf_##name",
            "#define KERF_NAMESPACE_OF(name) KERF_NAMESPACE_OF2(name)",
            "namespace KERF_NAMESPACE_OF(KERF_BACKEND) {",
            kernels,
            "}  // namespace\n",
            *(f"#undef {name}" for name in macros),
            "#endif\n",
        )
    )


_PREFACE = """// Kerf's runtime in one file, made from the sources in device_agent/native/src.
//
//     cc -O3 -Wno-psabi example.c {source} -o example
//
// GCC 11 or Clang 16 and newer need no more; older ones -std=c++17. On x86-64 GCC compiles the kernels for AVX-512,
// AVX2 and SSE2, and the fastest that the processor has is used; Clang compiles them for the set that its flags name,
// such as -march=native. Needs no C++ library. This file includes itself: keep its name. {header} is the interface.
// SPDX-License-Identifier: Apache-2.0
#if !defined(__OPTIMIZE__)
#warning "without -O3 the kernels are many times slower"
#endif
#if defined(__clang__)
#pragma STDC FP_CONTRACT ON
#else
// Of arrays that are filled by loops which GCC unrolls after it looks for this.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
"""


def _expand(name: str, have: set[str], *, keep_guard: bool = False) -> str:
    """The file `name` with the headers that it includes, each where it is first asked for. `have` are those that the
    text has already."""
    have.add(name)
    text = (SOURCE_DIR / name).read_text(encoding="utf-8")
    guard = _GUARD.search(text)
    if guard is not None and not keep_guard:
        text = text[: guard.start()] + text[guard.end() : text.rindex("#endif")]

    def include(match: re.Match[str]) -> str:
        return "" if match[1] in have else _expand(match[1], have)

    return f"// --- {name}\n{_QUOTED.sub(include, text).rstrip()}\n\n"


def _self_inclusion(backend: Backend) -> str:
    target = ",".join(flag.removeprefix("-m") for flag in backend.flags)
    lines = ["#pragma GCC push_options", f'#pragma GCC target("{target}")'] if target else []
    lines += [_definitions(backend), f'#include "{SOURCE_FILE}"', _DEFINITIONS_END]
    return "\n".join([*lines, "#pragma GCC pop_options"] if target else lines)


def _only(backend: Backend) -> str:
    return "\n".join((_definitions(backend), f'#include "{SOURCE_FILE}"', _DEFINITIONS_END, _backend_list((backend,))))


def _definitions(backend: Backend) -> str:
    return (
        f"#define KERF_BACKEND {backend.name}\n"
        f"#define KERF_NUM_REGISTERS {backend.num_registers}\n"
        f"#define KERF_MAX_VECTOR_LENGTH {backend.max_vector_length}"
    )


_DEFINITIONS_END = "#undef KERF_BACKEND\n#undef KERF_NUM_REGISTERS\n#undef KERF_MAX_VECTOR_LENGTH"


def _backend_list(backends: tuple[Backend, ...]) -> str:
    return f"#define KERF_BACKENDS(X) {' '.join(f'X({backend.name})' for backend in backends)}"
