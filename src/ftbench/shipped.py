"""What the core itself brings, through the same hooks as everybody."""

from ftbench.data.styles import PairsTask, StyleTask
from ftbench.data.task import Task, TopicTask
from ftbench.evaluation.judge import Judge
from ftbench.evaluation.pattern import StyleJudge
from ftbench.evaluation.tfidf import Tfidf
from ftbench.hookspecs import hookimpl


@hookimpl
def ftbench_tasks() -> list[type[Task]]:
    """Bring the tasks."""
    return [TopicTask, StyleTask, PairsTask]


@hookimpl
def ftbench_judges() -> list[type[Judge]]:
    """Bring the judges."""
    return [Tfidf, StyleJudge]
