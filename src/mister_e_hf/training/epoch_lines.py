"""Report each epoch of a training in one line, in place of the dictionaries of transformers."""

from collections.abc import Callable, Mapping

from transformers import TrainerCallback
from transformers.trainer_utils import has_length

from ..base import progress
from ..base.score_names import in_per_cent, score_title


class EpochLines(TrainerCallback):
    r"""
    Reports each evaluation, or each log of a training without evaluation, in one line, and draws one bar on a
    terminal.

    Args:
        title: name of what is trained, such as `"text encoder"`.
        terms: says what a loss consists of, from the metrics of training or of validation by name; empty if nothing.
    """

    def __init__(self, title: str, terms: Callable[[Mapping[str, float]], str] = lambda metrics: ""):
        self.title, self.terms = title, terms
        self._bar: progress.Bar | None = None
        self._scoring = False
        self._loss: float | None = None
        self._of_loss = ""

    def on_train_begin(self, args, state, control, **kwargs):
        self._loss = None
        if state.is_world_process_zero:
            if state.global_step:
                progress.line(f"{self.title}: resuming from epoch {self._number(state.epoch)}")
            self._open(self.title, state.max_steps, "steps", args, state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or "loss" not in (logs or {}):
            return
        self._loss, self._of_loss = logs["loss"], self._in_brackets(logs)
        if args.eval_strategy == "no":
            self._report(state, {})

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        self._close_scoring()
        if state.is_world_process_zero and self._loss is not None:
            self._report(state, metrics or {}, args.metric_for_best_model)

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        # During training there is a bar already.
        if self._bar is None and state.is_world_process_zero and has_length(eval_dataloader):
            self._open(f"{self.title}, scoring", len(eval_dataloader), "batches", args)
            self._scoring = True
        if self._scoring and self._bar is not None:
            self._bar.update(1)

    def on_predict(self, args, state, control, metrics=None, **kwargs):
        self._close_scoring()

    def on_train_end(self, args, state, control, **kwargs):
        self._close()

    def _report(self, state, metrics: dict[str, float], name: str | None = None):
        parts = [f"loss {float(self._loss or 0):.4g}{self._of_loss}"]
        name = (name or "weighted_f1").removeprefix("eval_")
        if f"eval_{name}" in metrics:
            value = float(metrics[f"eval_{name}"])
            shown = f"{100 * value:.2f}" if in_per_cent(name) else f"{value:.4f}"
            parts.append(f"validation {score_title(name)} {shown}{self._in_brackets(metrics, 'eval_')}")
        elif "eval_loss" in metrics:
            parts.append(f"validation loss {float(metrics['eval_loss']):.4g}")
        epoch = f"epoch {self._number(state.epoch)} of {self._number(state.num_train_epochs)}"
        progress.line(f"{self.title}, {epoch}: {', '.join(parts)}")
        self._loss = None

    def _in_brackets(self, metrics: Mapping[str, float], prefix: str = "") -> str:
        terms = self.terms({name.removeprefix(prefix): value for name, value in metrics.items()})
        return f" ({terms})" if terms else ""

    @staticmethod
    def _number(epoch: float | None) -> str:
        return f"{round(epoch or 0, 2):g}"

    def _open(self, title: str, total: int, unit: str, args, done: int = 0):
        self._bar = progress.bar(title, total, unit, shown=not args.disable_tqdm)
        self._bar.update(done)

    def _close(self):
        if self._bar is not None:
            self._bar.close()
        self._bar, self._scoring = None, False

    def _close_scoring(self):
        if self._scoring:
            self._close()
