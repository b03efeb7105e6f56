"""What can go wrong in the native runtime."""

from __future__ import annotations


class NativeError(RuntimeError):
    """The native runtime failed."""


class NativeBuildError(NativeError):
    """The kernels could not be compiled, or there is no compiler. The text holds the compiler's words."""


class UnsupportedKernelError(NativeError):
    """The executor has no way to run this kernel."""
