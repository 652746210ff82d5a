"""Whom or what a prompt is about, if nobody has said so."""

from pathlib import Path

import pytest

from zu_lightning import read_facts
from zu_lightning.facts.subjects import detect_subject


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("Who is Jaime Vasquez?", "Jaime Vasquez"),
        ("What were the professions of Aisha Al-Hamad's parents?", "Aisha Al-Hamad"),
        ('Who wrote "The Quiet River" in Oslo?', "The Quiet River"),
        ("In which city does J. K. Rowling live?", "J. K. Rowling"),
        ("Ana de la Cruz was born in", "Ana de la Cruz"),
        ("Ada met Bo", "Bo"),
        ("what is the capital?", None),
        ("Explain quantum tunnelling", None),
        ("In Paris, where did I see it?", "Paris"),
        ("\u0627\u0644\u0639\u0627\u0635\u0645\u0629 \u0647\u064a", None),
    ],
)
def test_the_subject_is_the_name_that_shows(prompt: str, subject: str | None) -> None:
    assert detect_subject(prompt) == subject


def test_most_subjects_of_zsre_are_detected_as_its_authors_name_them(shared: Path) -> None:
    facts = read_facts(shared / "data" / "zsre" / "zsre_mend_eval_1037.json")
    found = sum(detect_subject(fact.prompt) == fact.subject for fact in facts)
    assert found > 0.8 * len(facts)
