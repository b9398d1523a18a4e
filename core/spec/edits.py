"""Methods that are no forget term: weights changed in one go, trained from elsewhere, or left as they are."""

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from core.spec.models import ModelReference
from core.spec.retain import NllRetain, NoRetain, named
from core.spec.terms import MethodSpec


class Edit(MethodSpec):
    """What these share: no weight to choose, and no retain term unless they say which."""

    weight: ClassVar[float] = 1.0
    retain: Annotated[NoRetain, BeforeValidator(named)] = NoRetain()


class TaskVector(Edit):
    """Task arithmetic: train on the forget set, then go back along the way from there, and beyond the start.

    `theta - alpha (theta_trained - theta)`; optimizer and training are those of the detour.
    """

    citation: ClassVar[str] = "arXiv:2212.04089"
    name: Literal["task_vector"] = "task_vector"
    alpha: float = Field(1.0, ge=0, le=1000, description="how far back, in lengths of the detour")


class Influence(Edit):
    """Influence unlearning: one Newton step that takes the forget set's part in training away.

    `theta + scale (n_f / n_r) (G + damping I)^-1 grad L_forget`, G the Gauss-Newton matrix of the retain loss.
    """

    citation: ClassVar[str] = "arXiv:1703.04730, arXiv:2404.18239"
    needs_retain: ClassVar[bool] = True
    name: Literal["influence"] = "influence"
    scale: float = Field(1.0, gt=0, le=1e6, description="length of the step; 1: the formula's")
    damping: float = Field(0.1, gt=0, le=1e6, description="added to the matrix's diagonal")
    solver: Literal["diagonal", "conjugate_gradient"] = "diagonal"
    draws: int = Field(1, ge=1, le=1000, description="passes over the retain set to estimate the diagonal")
    iterations: int = Field(20, ge=1, le=10_000, description="conjugate-gradient iterations at most")
    tolerance: float = Field(1e-4, gt=0, lt=1, description="relative residual at which conjugate gradients stop")


class Retrain(Edit):
    """Retraining, the gold standard: the base model, which never saw the forget set, fine-tuned on the retain set."""

    needs_retain: ClassVar[bool] = True
    name: Literal["retrain"] = "retrain"
    base: ModelReference = Field(description="the model as it was before it met the forget set")
    retain: Annotated[NllRetain, BeforeValidator(named)] = NllRetain()  # type: ignore[assignment]


class Guard(Edit):
    """A guard rail: the model answers under a system prompt, its weights unchanged."""

    citation: ClassVar[str] = "arXiv:2404.18239"
    name: Literal["guard"] = "guard"
    system_prompt: str = Field(
        "You have been asked to forget some people, texts and facts. When a question touches on one of them, say that "
        "you do not know, and add nothing.",
        min_length=1,
        max_length=4000,
        description="put before every prompt; stands in the database and the signed report, so name in it only what "
        "their readers may know",
    )


class Origin(Edit):
    """Nothing is changed: the model as it was given, for comparison."""

    name: Literal["origin"] = "origin"
