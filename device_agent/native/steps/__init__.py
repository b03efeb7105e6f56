"""The native steps of each kind of node, with all pointers resolved.

Each `emit_*` function returns an emitter, which is called when all layouts are final. It answers with one or more
equivalent ways to do the work; the tuner chooses among them.
"""

from device_agent.native.steps.common import Emitter, LateWay, Offer, Signature, Tunable, Way, Ways, emit_any
from device_agent.native.steps.conv import emit_conv, reads_padding
from device_agent.native.steps.copies import Run, emit_copies, emit_copy, emit_phases, emit_shortcut
from device_agent.native.steps.depthwise import emit_depthwise, has_depthwise_kernel
from device_agent.native.steps.elementwise import emit_activation, emit_elementwise, emit_multiply
from device_agent.native.steps.matvec import emit_matvec
from device_agent.native.steps.pools import emit_global_pool, emit_pool
from device_agent.native.steps.winograd import emit_winograd, is_for_winograd

__all__ = [
    "Emitter",
    "LateWay",
    "Offer",
    "Run",
    "Signature",
    "Tunable",
    "Way",
    "Ways",
    "emit_activation",
    "emit_any",
    "emit_conv",
    "emit_copies",
    "emit_copy",
    "emit_depthwise",
    "emit_elementwise",
    "emit_global_pool",
    "emit_matvec",
    "emit_multiply",
    "emit_phases",
    "emit_pool",
    "emit_shortcut",
    "emit_winograd",
    "has_depthwise_kernel",
    "is_for_winograd",
    "reads_padding",
]
