"""Prints mutants of modules, a JSON object a line: what stands where, and what cosmic-ray's operators put in its place.

`mutants.py EACH SEED MODULE...` takes EACH mutants of a module at random, at most one for a place in the source as long
as there are other places. It runs in an environment that has cosmic-ray (CONTRIBUTING.md), and imports no mutated code.
"""

import ast
import collections
import hashlib
import itertools
import json
import sys

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators import (
    binary_operator_replacement,
    boolean_replacer,
    break_continue,
    comparison_operator_replacement,
    exception_replacer,
    number_replacer,
    remove_decorator,
    unary_operator_replacement,
    zero_iteration_for_loop,
)

# What tensors take too: a shift of floats fails at once, and would only flatter the tests.
BINARY = ("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "Add_Mul", "Mul_Add", "Sub_Mul", "FloorDiv_Mul", "Mod_FloorDiv")
BINARY += ("Pow_Mul", "BitAnd_BitOr", "BitOr_BitAnd")
OPERATORS = [
    *(getattr(binary_operator_replacement, f"ReplaceBinaryOperator_{pair}") for pair in BINARY),
    *(replaced for replaced in comparison_operator_replacement.operators() if "Is" not in replaced.__name__),
    comparison_operator_replacement.ReplaceComparisonOperator_Is_IsNot,
    comparison_operator_replacement.ReplaceComparisonOperator_IsNot_Is,
    unary_operator_replacement.ReplaceUnaryOperator_Delete_Not,
    unary_operator_replacement.ReplaceUnaryOperator_Delete_USub,
    boolean_replacer.AddNot,
    boolean_replacer.ReplaceTrueWithFalse,
    boolean_replacer.ReplaceFalseWithTrue,
    boolean_replacer.ReplaceAndWithOr,
    boolean_replacer.ReplaceOrWithAnd,
    break_continue.ReplaceBreakWithContinue,
    break_continue.ReplaceContinueWithBreak,
    exception_replacer.ExceptionReplacer,
    number_replacer.NumberReplacer,
    remove_decorator.RemoveDecorator,
    zero_iteration_for_loop.ZeroIterationForLoop,
]


def of_no_effect(source):
    """Spans that tests need not see: words of errors and warnings, annotations, estimates, published scores."""

    def matters_not(node):
        if isinstance(node, ast.Assign):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            return any(name.endswith(("__all__", "_BYTES", "SCORES", "_LIMITS")) for name in names)
        if isinstance(node, ast.Call):
            return ast.unparse(node.func).split(".")[0] in ("warnings", "logging", "logger", "log", "fits_memory")
        if isinstance(node, ast.keyword):
            return node.arg == "strict"
        return isinstance(node, (ast.Raise, ast.JoinedStr, ast.Import, ast.ImportFrom))

    for node in ast.walk(ast.parse(source)):
        annotations = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        for part in [*(part for part in annotations if part), *([node] if matters_not(node) else [])]:
            yield (part.lineno, part.col_offset), (part.end_lineno, part.end_col_offset)


def places(source):
    """(operator, occurrence, start) of all mutations."""
    nodes = list(ast_nodes(get_ast(source)))
    for operator in OPERATORS:
        spans = (span for node in nodes for span in operator().mutation_positions(node))
        for occurrence, (start, _) in enumerate(spans):
            yield operator, occurrence, start


def scope(source, line):
    """The dotted name of the function or class that a line stands in."""
    names = [
        (node.lineno, node.name)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
        and min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]) <= line <= node.end_lineno
    ]
    return ".".join(name for _, name in sorted(names))


def mutants(module, each, seed):
    """The chosen ones, how many there are to draw from, and how many were left out."""
    with open(module, encoding="utf-8") as file:
        source = file.read()
    lines, spans = source.splitlines(), list(of_no_effect(source))
    found = [place for place in places(source) if not any(begin <= place[2] < end for begin, end in spans)]

    def drawn(place):
        # By the text of the line and not its number: after a change elsewhere the same mutants are drawn again.
        operator, _, (line, column) = place
        name = [seed, module, lines[line - 1], column, operator.__name__]
        return hashlib.sha256(json.dumps(name).encode()).hexdigest()

    turn, order, chosen = collections.Counter(), [], {}
    for place in sorted(found, key=drawn):
        turn[place[2]] += 1
        order.append((turn[place[2]], len(order), place))
    for *_, (operator, occurrence, (line, _)) in sorted(order, key=lambda each: each[:2]):
        if len(chosen) == each:
            break
        # No code raises cosmic-ray's exception, and no module of ours knows its name.
        mutated = mutate_code(source, operator(), occurrence).replace("CosmicRayTestingException", "ZeroDivisionError")
        try:
            compile(mutated, module, "exec")
        except SyntaxError:
            continue
        new = mutated.splitlines()[line - 1].strip()
        key = f"{module} {scope(source, line)}\n- {lines[line - 1].strip()}\n+ {new}"
        chosen.setdefault(key, {"module": module, "key": key, "source": mutated})
    return list(chosen.values()), len(found), len(list(places(source))) - len(found)


if __name__ == "__main__":
    found = [mutants(path, int(sys.argv[1]), int(sys.argv[2])) for path in sys.argv[3:]]
    for turn in itertools.zip_longest(*(chosen for chosen, _, _ in found)):
        for mutant in filter(None, turn):
            print(json.dumps(mutant))
    total, left_out = (sum(count[i] for count in found) for i in (1, 2))
    print(f"{total} mutants to draw from, and {left_out} left out by rule", file=sys.stderr)
