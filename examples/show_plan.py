"""Prints the plan of a training step: its kernel calls, where their arguments lie, and the arena's size."""

import pycnn as cnn
from pycnn import losses, lowering, optimizers
from pycnn.bench import cases, kernel_peer
from pycnn.executor import Dropouts, PlanExecutor
from pycnn.native import ffi


def main() -> None:
    model = kernel_peer.network(cases.inputs())
    executor = PlanExecutor(model._graph((1, 8, 8)), Dropouts())
    updates = optimizers.Updates(cnn.SGD(0.1, momentum=0.9), {}, {})
    plan = lowering.loss_plan(
        executor.graph,
        lowering.Options(64, training=True),
        losses.CrossEntropy(),
        losses.INDICES,
        (executor._lower_update,),
        updates,
    )
    names = {base: name for name, base in plan.externals.items()}
    marks = {place: name for name, place in plan.marks.items() if place}
    for number, (kernel, _) in enumerate(plan.kernels):
        if number in marks:
            print(f"{marks[number]}:")
        call = plan._calls[number]
        args = [
            "-" if ref.base < 0 else f"{ref.offset}" if ref.base == 0 else names[ref.base]
            for ref in ffi.unpack(call.args, call.arguments)
        ]
        print(f"  {number:>2} {kernel:<24} {', '.join(args)}")
    print(f"arena: {plan.arena_bytes:,} bytes; threads: {plan.threads}")


if __name__ == "__main__":
    main()
