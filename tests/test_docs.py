"""The documentation is true: its code runs, its commands exist, its links lead somewhere, docstrings are complete.

A page's fenced `python` blocks are run in order, in one namespace. A comment `<!-- not run: why -->` right before a
block leaves it out. Blocks with prompts (`>>>`) are compared with what they print. Docstring examples are run as well.
"""

import dataclasses
import doctest
import importlib.util
import inspect
import io
import pkgutil
import re
import shlex
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import oxistep  # noqa: E402
import oxistep.numpy  # noqa: E402
import oxistep.optim  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "examples/*.md")
    for path in ROOT.glob(pattern)
    if not path.name.startswith(".")
)
IDS = [str(path.relative_to(ROOT)) for path in PAGES]

# ---- code of pages ----

FENCE = re.compile(
    r"(?:<!-- not run: (?P<why>[^\n]*?) -->\n)?^```(?P<language>[\w-]+)\n(?P<code>.*?)^```$", re.M | re.S
)


@dataclass
class Block:
    """A fenced block; `line` is that of its first line of code."""

    language: str
    code: str
    line: int
    not_run: str | None


def blocks(text, language):
    found = (
        Block(m["language"], m["code"], text.count("\n", 0, m.start("code")) + 1, m["why"])
        for m in FENCE.finditer(text)
    )
    return [block for block in found if block.language == language]


def run(text, name):
    """Runs the `python` blocks of a page and returns how many there were."""
    namespace = {"__name__": "page"}
    ran = 0
    for block in blocks(text, "python"):
        if block.not_run is not None:
            assert block.not_run, f"{name}:{block.line}: say why it is not run"
            continue
        ran += 1
        if ">>>" in block.code:
            test = doctest.DocTestParser().get_doctest(block.code, namespace, name, name, block.line - 1)
            said = io.StringIO()
            runner = doctest.DocTestRunner()
            runner.run(test, out=said.write, clear_globs=False)
            namespace.update(test.globs)
            assert runner.failures == 0, said.getvalue()
        else:
            # as many empty lines before it as there are on the page: a traceback shows the line of the page
            exec(compile("\n" * (block.line - 1) + block.code, name, "exec"), namespace)
    return ran


@pytest.fixture
def as_it_was(tmp_path, monkeypatch):
    """A page may do as it likes with the folder, seeds and threads."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    seed, threads = torch.get_rng_state(), torch.get_num_threads()
    # torch warns once in a process that sparse tensors are not checked, if nobody has chosen
    torch.sparse.check_sparse_tensor_invariants.enable()
    yield
    torch.set_rng_state(seed)
    torch.set_num_threads(threads)
    oxistep.set_num_threads(None)


@pytest.mark.parametrize("path", PAGES, ids=IDS)
def test_page_runs(path, as_it_was):
    with redirect_stdout(io.StringIO()):
        run(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT)))


def test_pages_have_code():
    """The search for blocks finds them: these pages live of theirs."""
    for page, at_least in (("README.md", 2), ("docs/start.md", 4), ("docs/swap-in.md", 8), ("docs/numpy.md", 6)):
        text = (ROOT / page).read_text(encoding="utf-8")
        assert len([block for block in blocks(text, "python") if block.not_run is None]) >= at_least, page
        assert text.count("```python\n") == len(blocks(text, "python")), page


def test_wrong_code_is_seen():
    assert run("```python\nx = 1\n```\ntext\n```python\nassert x == 1\n```\n", "page") == 2
    with pytest.raises(AssertionError):
        run("```python\nassert False\n```\n", "page")
    with pytest.raises(AssertionError):
        run("```python\n>>> 1 + 1\n3\n```\n", "page")
    assert run("<!-- not run: it would fail -->\n```python\nassert False\n```\n", "page") == 0
    with pytest.raises(ZeroDivisionError) as caught:
        run("\n\n```python\nx = 1\n1 / 0\n```\n", "page")
    assert caught.traceback[-1].lineno == 4  # counted from 0: the fifth line of the page


# ---- what `make types` is given ----


def typed_snippets():
    spec = importlib.util.spec_from_file_location("typed_snippets", ROOT / "docs" / "typed_snippets.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", PAGES, ids=IDS)
def test_type_checkers_read_what_is_run(path):
    text = path.read_text(encoding="utf-8")
    run_here = {}
    for block in blocks(text, "python"):
        if block.not_run is None and ">>>" not in block.code:
            run_here |= {block.line + i: line for i, line in enumerate(block.code.splitlines()) if line.strip()}
    pieces = typed_snippets().of_page(text)
    given = {i: line for i, line in enumerate(typed_snippets().placed(pieces).splitlines(), 1) if line.strip()}
    assert run_here.items() <= given.items()
    if ">>>" not in text:
        assert run_here == given


def test_type_checkers_read_docstrings():
    source = 'def f():\n    """Adds.\n\n    >>> 1 + 1\n    2\n    """\n\n\nclass A:\n    """None."""\n'
    module = typed_snippets()
    (found,) = module.of_docstrings(source)
    assert found == ("f", [(3, "1 + 1\n")])
    assert module.placed(found[1]) == "\n\n\n1 + 1\n"
    assert module.of_page("```python\n>>> 1 + 1\n2\n```\n") == [(1, "1 + 1\n")]


# ---- commands ----

MAKEFILE = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "Makefile", *ROOT.glob("*.mk")))
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.M))
VARIABLES = set(re.findall(r"^([A-Z_]+) \?=", MAKEFILE, re.M)) | set(re.findall(r"\$\(([A-Z_]+)\)", MAKEFILE))


def wrong_commands(text):
    """What shell blocks, and commands in backticks, ask for that is not there."""
    lines = [line for block in blocks(text, "sh") for line in block.code.splitlines()]
    lines += [code for code in re.findall(r"`([^`\n]+)`", text) if code.startswith(("make ", "python "))]
    wrong = []
    for line in lines:
        for command in re.split(r"&&|;|\|", re.sub(r"'[^']*'", "quoted", line)):
            words = shlex.split(command, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):  # variables of the environment
                words = words[1:]
            if words[:1] == ["make"]:
                for word in words[1:]:
                    name, assigned, _ = word.partition("=")
                    if name not in (VARIABLES if assigned else TARGETS) and word != "...":
                        wrong.append(f"{command.strip()}: {name}")
            elif words and re.fullmatch(r"(.*/)?python3?", words[0]) and len(words) > 1:
                if not words[1].startswith("-") and not (ROOT / words[1]).exists():
                    wrong.append(f"{command.strip()}: {words[1]}")
    return wrong


@pytest.mark.parametrize("path", PAGES, ids=IDS)
def test_commands_exist(path):
    assert wrong_commands(path.read_text(encoding="utf-8")) == []


def test_wrong_command_is_seen():
    assert wrong_commands("```sh\nmake check        # all\nmake test TORCH=2.10\n```\n`make bench-quick`") == []
    assert wrong_commands("```sh\nmake chekc && make test TROCH=2.10\n```\n") == [
        "make chekc: chekc",
        "make test TROCH=2.10: TROCH",
    ]
    assert wrong_commands("`python examples/no_such.py --optim torch`") == [
        "python examples/no_such.py --optim torch: examples/no_such.py"
    ]


# ---- links ----


def headings(text):
    """The anchors of a page, as GitHub and the site make them."""
    plain = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    titles = re.findall(r"^#+ +(.*)$", plain, re.M)
    return {
        re.sub(r"[^\w\- ]", "", re.sub(r"\[(.*?)\]\(.*?\)", r"\1", title).lower()).replace(" ", "-") for title in titles
    }


# Links to files of ours that must be whole: README.md is read on package indexes too.
HERE = ("https://github.com/oxistep/oxistep/blob/main/", "https://raw.githubusercontent.com/oxistep/oxistep/main/")


def broken_links(path, text):
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)):
        ours = next((link.removeprefix(start) for start in HERE if link.startswith(start)), None)
        if ours is None and re.match(r"[a-z]+:", link):
            continue
        where, _, anchor = (ours or link).partition("#")
        target = (ROOT / where) if ours else (path.parent / where).resolve() if where else path
        if not target.exists() or (anchor and anchor not in headings(target.read_text(encoding="utf-8"))):
            broken.append(link)
    return broken


@pytest.mark.parametrize("path", PAGES, ids=IDS)
def test_links_lead_somewhere(path):
    assert broken_links(path, path.read_text(encoding="utf-8")) == []


def test_broken_link_is_seen():
    text = "# A title, `here`\n[a](README.md) [b](no.md) [c](#a-title-here) [d](#no) [e](README.md#no) [f](https://example.org)"
    assert headings(text) == {"a-title-here"}
    page = ROOT / "CHANGELOG.md"
    assert broken_links(page, "[a](README.md) [b](no.md) [c](#unreleased) [d](#no) [e](README.md#no)") == [
        "no.md",
        "#no",
        "README.md#no",
    ]
    whole = f"[a]({HERE[0]}docs/start.md) ![b]({HERE[1]}docs/images/bowl.png) [c]({HERE[0]}docs/no.md)"
    assert broken_links(page, whole) == [f"{HERE[0]}docs/no.md"]


def title_of(path):
    """The title of a page, also of one that includes another."""
    text = path.read_text(encoding="utf-8")
    included = re.match(r"```\{include\} (\S+)", text)
    return title_of(path.parent / included[1]) if included else re.search(r"^# (.*)$", text, re.M)[1]


def misnamed(path, text):
    """Links to whole pages whose words are not the page's title, in lists of pages."""
    wrong = []
    for words, link in re.findall(r"(?<!!)\[([^\]]+)\]\(([^)\s#]+\.md)\)", text):
        where = link.removeprefix(HERE[0])
        target = (path.parent / where) if where == link else ROOT / where
        if words != title_of(target):
            wrong.append(f"[{words}]({link}) is {title_of(target)!r}")
    return wrong


@pytest.mark.parametrize("name", ["README.md", "docs/index.md", "docs/start.md"])
def test_pages_are_called_what_they_are(name):
    """Title, entry in the sidebar (which is made of titles) and links are the same words."""
    text = (ROOT / name).read_text(encoding="utf-8")
    lists = text if name != "README.md" else text[text.index("## Documentation") : text.index("\nLicensed")]
    assert misnamed(ROOT / name, lists) == []
    assert " <" not in "".join(re.findall(r"```\{toctree\}.*?```", text, re.S))


def test_a_misnamed_page_is_seen():
    found = misnamed(ROOT / "README.md", "[Performance](docs/performance.md) [Speed](docs/performance.md)")
    assert found == ["[Speed](docs/performance.md) is 'Performance'"]


def test_readme_has_no_relative_links():
    """They would lead nowhere on a package index."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith("https://")] == []


# ---- public names ----

# Public modules that are no API, with the reason why they need neither examples nor a page of their own.
NO_API = {
    "oxistep.__main__": "a command: docs/command-line.md",
    "oxistep.bench": "the benchmark: docs/benchmarks.md",
    "oxistep.cli": "a command: docs/command-line.md",
}


def is_no_api(name):
    return any(name == no or name.startswith(f"{no}.") for no in NO_API)


def our_modules():
    """The modules of the package whose content is ours; others are torch's modules under our name."""
    names = ["oxistep"] + [module.name for module in pkgutil.walk_packages(oxistep.__path__, "oxistep.")]
    if importlib.util.find_spec("torch.optim.functional") is None:  # old versions of torch lack it
        names.remove("oxistep.optim.functional")
    modules = {name: importlib.import_module(name) for name in names if not is_no_api(name)}
    return {name: module for name, module in modules.items() if module.__name__.startswith("oxistep")}


def is_private(name):
    return any(part.startswith("_") for part in name.split("."))


MODULES = {name: module for name, module in our_modules().items() if not is_private(name)}
# What a module defines itself, wherever it is; a class of torch's that we hand on is not ours to explain.
NAMES = {
    f"{module}.{name}": value
    for module in ("oxistep", "oxistep.optim", "oxistep.numpy", *MODULES)
    if len(module.split(".")) < 3
    for name in getattr(MODULES[module], "__all__", [])
    if callable(value := getattr(MODULES[module], name)) and value.__module__.startswith("oxistep")
}


def is_optimizer(value):
    ours = ("oxistep.optim.", "oxistep.numpy.")
    if not inspect.isclass(value) or value.__module__ == "oxistep.numpy.zoo":  # whose page is that of the zoo
        return False
    return value.__module__.startswith(ours) and hasattr(value, "step")


OPTIMIZERS = [name for name, value in NAMES.items() if is_optimizer(value)]


def test_public_names_are_found():
    assert {"oxistep", "oxistep.optim", "oxistep.numpy"} <= set(MODULES)
    assert {
        "oxistep.explain",
        "oxistep.optim.Adam",
        "oxistep.Adam",
        "oxistep.numpy.Adam",
        "oxistep.clip_grad_norm_",
    } <= set(NAMES)
    assert len([name for name in OPTIMIZERS if name.startswith("oxistep.optim.")]) == 15


@pytest.mark.parametrize("name", [name for name in MODULES if len(name.split(".")) < 3])
def test_module_has_a_page(name):
    """A new public module needs docs/api/NAME.md (see docs/api/index.md), or an entry in NO_API."""
    page = ROOT / "docs" / "api" / f"{name}.md"
    assert page.exists(), f"{name} is public: add {page.relative_to(ROOT)}, as docs/api/index.md says"


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "oxistep.numpy.Optimizer"])
def test_optimizer_has_a_page(name):
    module, _, optimizer = name.rpartition(".")
    if module == "oxistep":
        module = "oxistep.optim"
    pages = (path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "optimizers").glob("*.md"))
    assert sum(f".. autoclass:: {module}.{optimizer}\n" in page for page in pages) == 1


# ---- docstrings ----

HEADING = re.compile(r"^(Args|Attributes|State|Native|Returns|Raises|Example|Reference|Warning|Note):$", re.M)


def sections(docstring):
    """The sections of a docstring by heading; what stands before the first is ''."""
    parts = HEADING.split(inspect.cleandoc(docstring))
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def arguments(section):
    """The arguments that a section explains, each with its text."""
    found = re.split(r"^    (?=\S)", section, flags=re.M)[1:]
    return {
        name.strip(" *"): text
        for entry in found
        for names, _, text in [entry.partition(":")]
        for name in names.split(",")
    }


def default_said(text):
    """The default that an explanation ends with, as a value; None if it says none, or what None stands for in words."""
    match = re.search(r"\(default: ((?:[^()]|\([^()]*\))*)\)\.?", " ".join(text.split()))
    if match is None:
        return None
    said = re.split(r"[,;:](?![^(]*\)) ", match[1])[0]
    try:
        return (eval(said, {"__builtins__": {}, "True": True, "False": False, "None": None, "inf": float("inf")}),)
    except (NameError, SyntaxError):
        return (None,)


def made_by_us(value):
    """Whether it is a class of what functions return or raise: the example is theirs."""
    is_record = dataclasses.is_dataclass(value) or hasattr(value, "_fields")
    return inspect.isclass(value) and (is_record or issubclass(value, (Exception, list)))


def faults(name, value):
    """What is missing in the docstring of a public name, or not as its signature says."""
    found = []
    docstring = value.__doc__
    if not docstring:
        return ["no docstring"]
    parts = sections(docstring)
    if not re.match(r"\S.*[.:]\n?(\n|$)", inspect.cleandoc(docstring)):
        found.append("the first line is no sentence")
    raised = inspect.isclass(value) and issubclass(value, Exception)  # of built-in classes Python knows no signature
    signature = inspect.Signature() if raised else inspect.signature(value)
    parameters = [p for p in signature.parameters.values() if p.name not in ("self", "args", "kwargs")]
    if parameters and not made_by_us(value):
        explained = arguments(parts.get("Args", ""))
        found += [f"Args: {p.name} is missing" for p in parameters if p.name not in explained]
        extra = explained.keys() - {p.name for p in parameters}
        # an older torch may lack what the text says is newer
        found += [f"Args: there is no {one}" for one in extra if "torch >=" not in explained[one]]
        for p in parameters:
            said = default_said(explained.get(p.name, ""))
            if said is not None and said[0] != p.default:
                found.append(f"Args: {p.name} is {p.default!r} by default, not {said[0]!r}")
            if said is None and p.default is not p.empty and "as in torch" not in explained.get(p.name, ""):
                found.append(f"Args: the default of {p.name}, {p.default!r}, is not said")
        if "Raises" not in parts:
            found.append("Raises is missing")
    if ">>> " not in parts.get("Example", "") and not made_by_us(value):
        found.append("Example is missing")
    if is_optimizer(value):
        found += [
            f"{section} is missing"
            for section in ("State", "Native", "Reference")
            if not parts.get(section, "").strip()
        ]
        states = parts.get("State", "")
        if "ema" in signature.parameters and "param_ema:" not in states:
            found.append("State: what ema adds is missing")
        if "weights" in signature.parameters and "what ``state_dtype`` and ``weights`` add" not in states:
            found.append("State: what state_dtype and weights add is missing")
        if "ema" not in signature.parameters and "param_ema" in states:
            found.append("State: there is no param_ema")
        if ".. math::" not in docstring and "::\n" not in docstring:
            found.append("the formula is missing")
    elif inspect.isfunction(value) and inspect.signature(value).return_annotation not in (
        None,
        "None",
        inspect.Signature.empty,
    ):
        found += [] if "Returns" in parts else ["Returns is missing"]
    return found


# These are never made by users: subclasses, and the function that returns it, say the rest.
BASES = {"oxistep.numpy.Optimizer", "oxistep.GradientRelease"}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in BASES])
def test_docstring_is_complete(name):
    assert faults(name, NAMES[name]) == []


def methods():
    """The public methods that our classes define themselves; those of optimizers for torch are torch's."""
    found = {}
    for name, value in NAMES.items():
        if not inspect.isclass(value) or issubclass(value, torch.optim.Optimizer):
            continue
        for method, function in vars(value).items():
            function = function.fget if isinstance(function, property) else function
            if not method.startswith("_") and inspect.isfunction(function):
                found[f"{name}.{method}"] = function
    return found


METHODS = methods()


def method_faults(function):
    if not function.__doc__:
        return ["no docstring"]
    parts = sections(function.__doc__)
    explained = arguments(parts.get("Args", ""))
    parameters = [p for p in inspect.signature(function).parameters if p != "self"]
    found = [f"Args: {p} is missing" for p in parameters if p not in explained]
    return found + [f"Args: there is no {p}" for p in explained if p not in parameters]


@pytest.mark.parametrize("name", METHODS)
def test_arguments_of_methods_are_explained(name):
    assert method_faults(METHODS[name]) == []


def test_methods_are_found():
    assert {"oxistep.diagnostics.GradientMonitor.update", "oxistep.numpy.Optimizer.step"} <= set(METHODS)

    def thin(self, a):
        """Does.

        Args:
            b: nothing.
        """

    assert method_faults(thin) == ["Args: a is missing", "Args: there is no b"]


def test_thin_docstring_is_seen():
    def good(a, b=2.0):
        """Adds.

        Args:
            a: a number.
            b: another (default: 2.0).

        Returns:
            float: the sum.

        Raises:
            TypeError: for what is no number.

        Example:
            >>> 1 + 1
            2
        """

    def wrong(a, b=2.0, c=None):
        """Adds

        Args:
            a: a number.
            b: another (default: 3.0).
            d: nothing.
        """

    assert faults("good", good) == []
    assert faults("wrong", wrong) == [
        "the first line is no sentence",
        "Args: c is missing",
        "Args: there is no d",
        "Args: b is 2.0 by default, not 3.0",
        "Args: the default of c, None, is not said",
        "Raises is missing",
        "Example is missing",
    ]


def examples():
    """Every docstring of ours with an example, also where a public class has it from a private one."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    ours = {name: module for name, module in our_modules().items() if name != "oxistep._core"}
    found = [test for name, module in ours.items() for test in finder.find(module, name)]
    # what is native is in no module of Python's
    natives = {name: value for name, value in NAMES.items() if inspect.isbuiltin(value)}
    found += [test for name, value in natives.items() for test in finder.find(value, name, module=False)]
    return [test for test in found if test.examples]


@pytest.mark.parametrize("test", examples(), ids=lambda test: test.name)
def test_docstring_example_runs(test, as_it_was):
    said = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    runner.run(test, out=said.write)
    assert runner.failures == 0, said.getvalue()


def test_examples_are_found():
    names = {test.name for test in examples()}
    assert {
        "oxistep.cpu_features",
        "oxistep._threads.set_num_threads",
        "oxistep.get_num_threads",
        "oxistep._clip.clip_grad_norm_",
        "oxistep._explain.explain",
        "oxistep.optim._native.NativeStep.step",
        "oxistep.numpy._base.Optimizer.step",
        "oxistep.numpy",
    } <= names
    assert len(names) >= 30
