"""How far DPO has moved from its reference, told from what it computes anyway, and a limit that ends it.

For replies y drawn from the reference, the mean of log reference(y) - log policy(y) estimates the Kullback-Leibler
divergence of the reference from the policy, in nats per reply (Schulman 2020, "Approximating KL Divergence", its k1).
DPO has these log-ratios of the replies that it trains on, and they are logged as rewards, times beta. It is an estimate
on off-policy replies: of those that the reference wrote the best and the worst were chosen, they are trained on, human
replies may be among them, and with another reference than M_t none was drawn from it. Where chosen replies become as
much likelier as rejected ones become less likely, the two cancel. The estimate of a step is of its own replies alone,
and of the policy before the step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# In a trainer's log.
KL = "kl"


def budget_callback(beta: float, budget: float | None) -> Any:
    """Return a trainer's callback that adds the estimate to the log, and ends training beyond a budget.

    Args:
        beta: DPO's.
        budget: In nats per reply; None: training goes on to its end.
    """
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        """Reads every logged step."""

        def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            logged = state.log_history[-1]
            if "rewards/chosen" not in logged:
                return
            logged[KL] = -(logged["rewards/chosen"] + logged["rewards/rejected"]) / (2 * beta)
            # An earlier one where training was interrupted right after it.
            if step_beyond(state.log_history, budget) is not None:
                control.should_training_stop = True

    return Watch()


def step_beyond(history: Iterable[Mapping[str, float]], budget: float | None) -> int | None:
    """Return the first logged step whose estimate is beyond a budget, None if there is none.

    Args:
        history: A trainer's log.
        budget: In nats per reply.
    """
    if budget is None:
        return None
    return next((int(entry["step"]) for entry in history if KL in entry and entry[KL] > budget), None)
