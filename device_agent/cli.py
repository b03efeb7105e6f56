"""`kerf-agent`: the command line of the device agent. argparse only, so that it starts fast on a small board."""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from device_agent import __version__
from device_agent.clock import SystemClock
from device_agent.contracts import (
    ContractError,
    KernelSpec,
    KernelTask,
    Measurement,
    MeasuringSetup,
    decode,
    encode,
    kernel_id,
)
from device_agent.errors import AgentError, CredentialsRefused, SettingsError, TryAgainLater
from device_agent.identity import locked_state
from device_agent.log import configure_logging
from device_agent.measuring.conditions import ConditionsReader
from device_agent.measuring.pinning import choose_cores, pinned
from device_agent.measuring.preflight import boost_enabled, checks, limits_of
from device_agent.runner import ChildRunner
from device_agent.service import ENROL_ATTEMPTS, announcement_of, enrol, run_service
from device_agent.settings import ENVIRONMENT, AgentSettings, load_settings
from device_agent.stopping import StopRequest

EXIT_ERROR = 1
EXIT_USAGE = 2
#: The token or code is refused: starting again will not help (EX_NOPERM; systemd: RestartPreventExitStatus=77).
EXIT_REFUSED = 77
#: Stopped at once by a second signal (128 + SIGTERM).
EXIT_ABORTED = 143
#: After the second signal the orderly way out (kill the child, close the files) takes a fraction of this.
ABORT_GRACE_S = 2.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `kerf-agent`; the exit status."""
    options = make_parser().parse_args(arguments)
    try:
        settings = load_settings(
            os.environ,
            server=getattr(options, "server", None),
            code=getattr(options, "code", None),
            name=getattr(options, "name", None),
            state_dir=options.state_dir,
            simulated=options.simulated,
            max_leases=getattr(options, "max_leases", None),
            log_level=options.log_level,
        )
        configure_logging(settings.log_level)
        commands = {
            "run": _run,
            "enrol": _enrol,
            "probe": _probe,
            "bench": _bench,
            "deploy": _deploy,
            "fleet": _fleet,
            "preflight": _preflight,
        }
        return commands[options.command](settings, options)
    except CredentialsRefused as error:
        print(
            f"kerf-agent: {error}\nThe server does not accept this agent: enrol it again with a new code "
            "(kerf-agent enrol --server URL --code CODE).",
            file=sys.stderr,
        )
        return EXIT_REFUSED
    except (AgentError, ContractError) as error:
        print(f"kerf-agent: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        return EXIT_ABORTED


def _run(settings: AgentSettings, options: argparse.Namespace) -> int:
    stop = StopRequest()
    stop.on_abort(_exit_soon)
    with stop.signals_handled(), locked_state(settings.state_dir):
        try:
            run_service(settings, stop)
        except TryAgainLater:
            # Stopped while it waited for a server that is away: that is a stop, not a failure.
            if not stop.drain.is_set():
                raise
    return EXIT_ABORTED if stop.abort.is_set() else 0


def _exit_soon() -> None:
    """End the process even if its main thread hangs in a request or a probe: whatever counts is on the disk."""
    timer = threading.Timer(ABORT_GRACE_S, os._exit, (EXIT_ABORTED,))
    timer.daemon = True
    timer.start()


def _enrol(settings: AgentSettings, options: argparse.Namespace) -> int:
    stop = StopRequest()
    with locked_state(settings.state_dir):
        credentials = enrol(settings, announcement_of(settings), stop, attempts=options.attempts, clock=SystemClock())
    print(
        json.dumps(
            {"device_id": credentials.device_id, "server": credentials.server_url, "state_dir": str(settings.state_dir)}
        )
    )
    return 0


def _probe(settings: AgentSettings, options: argparse.Namespace) -> int:
    announcement = announcement_of(settings)
    print(json.dumps({"profile": encode(announcement.profile), "runtimes": encode(announcement.runtimes)}, indent=2))
    return 0


def _fleet(settings: AgentSettings, options: argparse.Namespace) -> int:
    """Be a whole fleet of simulated devices until stopped."""
    # The scenario's code computes with numpy: no other command loads it.
    from device_agent.runtimes import RuntimeUnavailable
    from device_agent.simulation.fleet import Fleet
    from device_agent.simulation.scenario import read_scenario

    try:
        scenario, curves = read_scenario(options.scenario)
        fleet = Fleet(scenario, curves, settings)
    except OSError as error:
        raise SettingsError(f"cannot read {error.filename}: {error.strerror}") from error
    except RuntimeUnavailable as error:
        raise SettingsError(str(error)) from error
    stop = StopRequest()
    stop.on_abort(_exit_soon)
    with stop.signals_handled(), locked_state(settings.state_dir):
        fleet.start()
        print(f"{len(fleet)} simulated devices work for {settings.server_url}; stop them with Ctrl-C", flush=True)
        while fleet.is_alive and not stop.drain.wait(1.0):
            pass
        fleet.stop()
    return EXIT_ERROR if fleet.errors else 0


def _preflight(settings: AgentSettings, options: argparse.Namespace) -> int:
    """Print what is good and bad about measuring here; 1 where something is bad."""
    cores = choose_cores(1)
    with pinned(cores) as affinity:
        reader = ConditionsReader(core=affinity[0] if affinity else 0, alone=len(affinity) == 1)
        before = reader.read()
        SystemClock().wait(threading.Event(), options.seconds)
        after = reader.read()
    found = checks(before, after, limits_of(after), affinity, boost_enabled())
    if options.json:
        print(json.dumps(encode(found), indent=2))
        return EXIT_ERROR if any(check.ok is False for check in found) else 0
    signs = {True: "good", False: "bad", None: "unknown"}
    for check in found:
        print(f"{signs[check.ok]:8} {check.name:12} {check.found}" + (f": {check.remedy}" if check.remedy else ""))
    return EXIT_ERROR if any(check.ok is False for check in found) else 0


def _bench(settings: AgentSettings, options: argparse.Namespace) -> int:
    """Time one kernel here and now; no server takes part."""
    task = _read_task(options.kernel, options)
    announcement = announcement_of(settings)
    runner = ChildRunner(announcement.runtimes, emulated=announcement.profile.emulated)
    result = runner.run_task(task, deadline_s=options.deadline_s)
    shown = encode(result)
    if isinstance(result, Measurement) and not options.samples:
        del shown["blocks"]
    print(json.dumps({"kernel_id": kernel_id(task.kernel), "result": shown}, indent=2))
    return 0 if isinstance(result, Measurement) else EXIT_ERROR


def _deploy(settings: AgentSettings, options: argparse.Namespace) -> int:
    """Write what runs a packed network on its own: see native/deployment."""
    # The kernels are compiled at first use: no other command may depend on that.
    from device_agent.native.deployment import write_deployment
    from device_agent.native.errors import NativeError

    try:
        packed = options.network.read_bytes()
    except OSError as error:
        raise SettingsError(f"cannot read {options.network}: {error.strerror}") from error
    try:
        network = write_deployment(packed, options.output, isa=options.isa, tune=not options.no_tune)
    except NativeError as error:
        raise AgentError(str(error)) from error
    except OSError as error:
        raise SettingsError(f"cannot write to {options.output}: {error.strerror}") from error
    print(json.dumps({"output": str(options.output), "isa": network.isa, "tuned": not options.no_tune}))
    return 0


def _read_task(path: Path, options: argparse.Namespace) -> KernelTask:
    """A kernel task from a file that holds a KernelSpec, or a whole KernelTask with its own measuring setup."""
    try:
        data = json.loads(sys.stdin.read() if str(path) == "-" else path.read_text())
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise SettingsError(f"{path} is not JSON: {error}") from error
    if isinstance(data, dict) and "kernel" in data:
        return decode(KernelTask, data)
    setup = MeasuringSetup(runtime=options.runtime, budget_s=options.budget_s)
    return KernelTask(kernel=decode(KernelSpec, data), setup=setup)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; the documentation is made from it, too."""
    variables = "\n".join(f"  {name:34} {meaning}" for name, meaning in ENVIRONMENT.items())
    parser = argparse.ArgumentParser(
        prog="kerf-agent",
        description="Kerf's device agent: times the kernels and networks that a Kerf server asks for.",
        epilog=f"environment variables (a flag wins over them):\n{variables}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"kerf-agent {__version__}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--state-dir", type=Path, metavar="DIR", help="default: ~/.local/share/kerf-agent")
    common.add_argument("--simulated", action="store_true", help="be a simulated device: computed latencies, marked so")
    common.add_argument("--log-level", choices=("debug", "info", "warning", "error"))
    server = argparse.ArgumentParser(add_help=False)
    server.add_argument("--server", metavar="URL", help="address of the server")
    server.add_argument("--name", help="name of the device in the dashboard (default: the host name)")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run",
        parents=[common, server],
        help="work for the server until stopped",
        description="Work until SIGTERM or SIGINT: the first one finishes the task in hand, "
        "gives the rest back and delivers; the second stops at once.",
    )
    run.add_argument("--code", help="enrolment code, used on the first start")
    run.add_argument("--max-leases", type=int, metavar="N", help="tasks taken at once (1..64)")
    enrolment = commands.add_parser("enrol", parents=[common, server], help="get a token for this device")
    enrolment.add_argument("--code", help="enrolment code from the server")
    enrolment.add_argument(
        "--attempts",
        type=int,
        default=ENROL_ATTEMPTS,
        metavar="N",
        help="tries while the server cannot be reached (default: %(default)s)",
    )
    commands.add_parser("probe", parents=[common], help="print what this device is and which runtimes it has")
    fleet = commands.add_parser(
        "fleet", parents=[common, server], help="be a fleet of simulated devices, as a scenario describes it"
    )
    fleet.add_argument("scenario", type=Path, metavar="SCENARIO.json", help="see docs/devices.md")
    fleet.add_argument("--code", help="enrolment code for as many devices, used on the first start")
    preflight = commands.add_parser(
        "preflight", parents=[common], help="look at heat, frequency, quota and other load before measuring"
    )
    preflight.add_argument("--json", action="store_true", help="print JSON")
    preflight.add_argument("--seconds", type=float, default=1.0, help="how long to look (default: %(default)s)")
    bench = commands.add_parser("bench", parents=[common], help="time one kernel and print the measurement")
    bench.add_argument("kernel", type=Path, metavar="KERNEL.json", help="a KernelSpec or a KernelTask; - is stdin")
    bench.add_argument(
        "--runtime", default="native", help="native, tflite, tflite-sparse, ncnn or simulated (default: %(default)s)"
    )
    bench.add_argument("--budget-s", type=float, default=2.0, help="measuring time (default: %(default)s)")
    bench.add_argument("--deadline-s", type=float, default=60.0, help="the child is killed then (default: %(default)s)")
    bench.add_argument("--samples", action="store_true", help="print the raw samples too")
    deploy = commands.add_parser(
        "deploy",
        parents=[common],
        help="write a folder that runs a network without Kerf: C source, program image, examples",
    )
    deploy.add_argument(
        "network", type=Path, metavar="NETWORK.kerfnet", help="a packed network, as a search exports it"
    )
    deploy.add_argument("--output", type=Path, required=True, metavar="DIR", help="the folder, made if it is not there")
    deploy.add_argument("--isa", help="choose tiles for this instruction set of this machine (default: the fastest)")
    deploy.add_argument("--no-tune", action="store_true", help="guess tiles instead of timing them here")
    return parser


if __name__ == "__main__":
    sys.exit(main())
