"""What a planted bug is: rules that edit a source file of raftd, and the checks that must see the difference."""

from dataclasses import dataclass


class RuleError(Exception):
    """A rule does not fit the source any more, or changes nothing."""


@dataclass(frozen=True)
class Edit:
    """``old``, which the file below ``raftd/`` must hold exactly once, becomes ``new``. A first line break in either is dropped."""

    path: str
    old: str
    new: str

    def apply(self, text):
        """*text* with the edit. Raises RuleError."""
        old, new = self.old.removeprefix("\n"), self.new.removeprefix("\n")
        if (count := text.count(old)) != 1:
            raise RuleError(f"raftd/{self.path} has {count} times, not once: {old.strip().splitlines()[0]}")
        if old == new:
            raise RuleError(f"raftd/{self.path} stays as it is")
        return text.replace(old, new)


@dataclass(frozen=True)
class Mutant:
    """A bug to plant.

    name    what it is called on the command line
    wrong   what raftd does then, in one sentence
    source  where the mistake was really made, or which rule it breaks
    edits   applied in this order
    checks  each sees it: what pytest calls a test, or a ``bin/simulate`` with its options
    quick   in the subset for every day, of which each room has some
    """

    name: str
    wrong: str
    source: str
    edits: list[Edit]
    checks: list[str]
    quick: bool = False

    def edited(self, root):
        """The new text of each file that changes, by its path below *root*. Raises RuleError."""
        texts = {}
        for edit in self.edits:
            path = root / "raftd" / edit.path
            if path not in texts and not path.is_file():
                raise RuleError(f"there is no raftd/{edit.path}")
            texts[path] = edit.apply(texts.get(path) or path.read_text())
        return {path.relative_to(root): text for path, text in texts.items()}
