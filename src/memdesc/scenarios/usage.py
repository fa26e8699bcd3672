"""How a verb is written, from its row of the table: for errors, help and documentation.

>>> from memdesc.scenarios.verbs import VERBS
>>> usage(VERBS["advise"])
'p: advise RANGE ADVICE'
"""

from __future__ import annotations

from memdesc.scenarios.language import Kind, Option, Parameter, Verb

__all__ = ["option_usage", "parameter_usage", "usage"]


def usage(verb: Verb, *, options: bool = True) -> str:
    """One line: `p: write RANGE CONTENT...`; options in brackets."""
    words = ["p:"] if verb.by_process else []
    words.append(verb.name)
    words += [parameter_usage(parameter) for parameter in verb.parameters]
    if options:
        words += [f"[{option_usage(option)}]" for option in verb.options]
    return " ".join(words)


def parameter_usage(parameter: Parameter) -> str:
    """A parameter as it is shown: its name in capitals, or its words."""
    if parameter.kind is Kind.WORD and len(parameter.choices) <= 4:
        text = "|".join(parameter.choices)
    else:
        text = "NAME" if parameter.kind is Kind.NEW else parameter.name.upper()
    if parameter.kind is Kind.TAGS:
        text += "..."
    return f"[{text}]" if parameter.is_optional else text


def option_usage(option: Option) -> str:
    """An option: its word, or words, and what follows."""
    values = " ".join(parameter_usage(parameter) for parameter in option.values)
    return f"{'|'.join(option.words)} {values}".rstrip()
