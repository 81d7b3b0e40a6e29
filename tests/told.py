"""A progress that remembers what it was told."""

from secateur.progress import SilentProgress


class Told(SilentProgress):
    """Tasks in their order, each with the steps announced and the details of those done."""

    def __init__(self) -> None:
        self.tasks: list[tuple[str, int, list[str]]] = []

    def begin(self, task: str, total: int) -> None:
        self.tasks.append((task, total, []))

    def advance(self, detail: str = "") -> None:
        self.tasks[-1][2].append(detail)

    def unfinished(self) -> list[str]:
        """Tasks of which not as many steps were done as were announced."""
        return [task for task, total, details in self.tasks if len(details) != total]
