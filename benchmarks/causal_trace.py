"""Which layers carry the answer at the lookup token, as a Markdown table.

python -m benchmarks.causal_trace --model data/demo/model --facts data/demo/facts.jsonl
"""

from benchmarks.console import new_parser, table_head, table_row
from benchmarks.setting import load_model, named_facts
from zu_lightning import causal_trace, split_facts


def main() -> None:
    """Trace a random draw of facts."""
    parser = new_parser(__doc__, "model", "facts", "ids", "seed", "device")
    parser.add_argument("--count", type=int, default=200, help="number of facts to trace (default: %(default)s)")
    arguments = parser.parse_args()
    facts = [fact for fact in named_facts(arguments) if fact.subject]
    drawn, *_ = split_facts(facts, min(arguments.count, len(facts)), seed=arguments.seed)
    trace = causal_trace(load_model(arguments), drawn)
    print(f"Mean probability of the answer over {len(drawn)} facts: {trace.clean:.3f} as it is,")
    print(f"{trace.corrupted:.3f} with another subject's last token in the input.\n")
    print(table_head(("layer", "another's state in its place", "another's last token, this state restored")))
    for layer in trace.layers:
        print(table_row((layer.layer, f"{layer.corrupted:.3f}", f"{layer.restored:.3f}")))


if __name__ == "__main__":
    main()
