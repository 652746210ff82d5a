"""Which layers carry the answer at the lookup token, as a Markdown table.

python benchmarks/causal_trace.py --model data/demo/model --facts data/demo/facts.jsonl
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from zu_lightning import EditableLM, causal_trace, read_facts, split_facts


def main() -> None:
    """Trace a random draw of facts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="data/demo/model")
    parser.add_argument("--facts", default="data/demo/facts.jsonl")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    facts = [fact for fact in read_facts(arguments.facts) if fact.subject]
    drawn, _ = split_facts(facts, min(arguments.count, len(facts)), 0, arguments.seed)
    lm = EditableLM.from_pretrained(arguments.model).to(torch.device(arguments.device))
    trace = causal_trace(lm, drawn)
    print(f"Probability of the answer, mean over {len(drawn)} facts: {trace.clean:.3f} as it is,")
    print(f"{trace.corrupted:.3f} with another subject's last token in the input.\n")
    print("| layer | another's state in its place | another's last token, this state restored |\n|---|---|---|")
    for layer in trace.layers:
        print(f"| {layer.layer} | {layer.corrupted:.3f} | {layer.restored:.3f} |")


if __name__ == "__main__":
    main()
