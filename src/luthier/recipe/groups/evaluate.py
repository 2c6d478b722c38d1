"""The group `evaluate`."""

from pydantic import Field, field_validator, model_validator

from luthier.recipe.groups.group import Group

# Of generated answers. A name that ends in .py is a file of the user's own.
METRICS = (
    *(
        "exact_match",
        "normalised_match",
        "token_f1",
        "rouge_1",
        "rouge_2",
        "rouge_l",
        "bleu",
        "chrf",
    ),
    *("accuracy", "json_valid", "json_schema", "sql_execution", "judge"),
)


_NEEDED_BY_METRIC = {
    "sql_execution": "sql_databases",
    "json_schema": "json_schema",
    "judge": "judge_model",
}


class EvaluateGroup(Group):
    """How `luthier evaluate` compares the base model with the tuned one."""

    metrics: list[str] = Field(
        ["exact_match", "rouge_l", "chrf"],
        description=f"metrics of the generated answers: {', '.join(METRICS)}, an installed plugin, "
        "or a .py file with score(answer, row); accuracy is added where the references form a set of labels",
        examples=[["exact_match", "bleu"]],
    )
    max_rows: int = Field(
        100,
        ge=0,
        description="held-out rows to generate answers for; 0: none, only the loss",
        examples=[20],
    )
    max_new_tokens: int = Field(
        256, ge=1, description="longest generated answer in tokens", examples=[64]
    )
    batch_size: int = Field(
        64,
        ge=1,
        description="answers of each side to generate at once; fewer where memory does not hold them",
        examples=[4],
    )
    sql_databases: str | None = Field(
        None,
        description="for sql_execution: folder of <name>.sql or <name>.sqlite files, which rows name "
        "in their 'database' field",
        examples=["databases"],
    )
    json_schema: str | None = Field(
        None,
        description="for json_schema: file of the JSON Schema that answers must meet",
        examples=["answer.schema.json"],
    )
    judge_model: str | None = Field(
        None, description="for judge: name of the model that grades answers", examples=["gpt-4o"]
    )
    judge_url: str = Field(
        "https://api.openai.com/v1",
        description="for judge: URL of an endpoint that speaks OpenAI's protocol",
        examples=["http://localhost:8000/v1"],
    )
    judge_key_env: str = Field(
        "OPENAI_API_KEY",
        description="for judge: environment variable that holds the endpoint's API key",
        examples=["JUDGE_API_KEY"],
    )
    reward_model: str | None = Field(
        None,
        description="folder of a finished run of the objective reward: it says which of two generated "
        "answers is better, the base's or the tuned model's (win rate)",
        examples=["runs/reward"],
    )
    win_rate: bool | None = Field(
        None,
        description="ask which of two generated answers is better, the base's or the tuned model's: "
        "evaluate.judge_model, in both orders, and evaluate.reward_model; without this key a reward "
        "model is always asked, and a judge for objectives that learn from preferences",
        examples=[True],
    )

    probe: bool = Field(
        True,
        description="ask general questions to detect forgetting: a few during training, all of them "
        "in luthier evaluate",
    )
    max_accuracy_drop: float = Field(
        0.05,
        gt=0,
        le=1,
        description="a run has forgotten if its accuracy on general questions drops by more than this",
        examples=[0.1],
    )
    max_perplexity_ratio: float = Field(
        1.5,
        gt=1,
        description="a run has forgotten if its perplexity on general text rises beyond this many "
        "times the base model's",
        examples=[2.0],
    )
    max_leakage: float = Field(
        0.1,
        gt=0,
        le=1,
        description="a run has forgotten if more than this share of its answers to unrelated "
        "questions has the form of the training answers",
        examples=[0.2],
    )

    @field_validator("metrics")
    @classmethod
    def _each_once(cls, names: list[str]) -> list[str]:
        return list(dict.fromkeys(names))

    @model_validator(mode="after")
    def _metrics_have_what_they_need(self) -> "EvaluateGroup":
        for metric, key in _NEEDED_BY_METRIC.items():
            if metric in self.metrics and getattr(self, key) is None:
                raise ValueError(f"evaluate.metrics {metric} needs evaluate.{key}")
        if self.win_rate and self.judge_model is None and self.reward_model is None:
            raise ValueError(
                "evaluate.win_rate needs evaluate.judge_model or evaluate.reward_model, which say which "
                "of two answers is better"
            )
        return self
