"""Which names of classes and functions in a pickle are refused, which are stood in for.

Nothing that a pickle names is ever imported or called here, so safety does not rest on these lists. They
decide what the reader says: a name that no checkpoint has a reason to carry ends the reading with that name
in the error; a class of some library (a network, a configuration) becomes an inert record of what the pickle
would have made of it.
"""

from __future__ import annotations

import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING

# What the standard library gives to pickles of configurations and modules. All else of it is refused.
_INERT_PACKAGES = frozenset(
    {
        *(
            "collections",
            "datetime",
            "decimal",
            "enum",
            "fractions",
            "itertools",
            "math",
            "numbers",
            "pathlib",
        ),
        *("random", "typing", "uuid", "zoneinfo"),
    }
)
_INERT_NAMES = frozenset(
    {
        "argparse.Namespace",
        *("builtins.Ellipsis", "builtins.NotImplemented", "builtins.object", "builtins.type"),
        *("builtins.bool", "builtins.int", "builtins.float", "builtins.complex"),
        *("builtins.str", "builtins.bytes", "builtins.bytearray", "builtins.range", "builtins.slice"),
        "contextlib.nullcontext",
        "functools.partial",
        *("inspect.Parameter", "inspect.Signature", "inspect._ParameterKind", "inspect._empty"),
        *("logging.Logger", "logging.getLogger"),
        *("re._compile", "re.RegexFlag"),
        *("types.EllipsisType", "types.MappingProxyType", "types.NoneType", "types.SimpleNamespace"),
    }
)
# Parts of the standard library of other versions of Python than the one that runs.
_FORMER_STDLIB = frozenset(
    {
        *(
            "asynchat",
            "asyncore",
            "cgitb",
            "commands",
            "crypt",
            "distutils",
            "dl",
            "imp",
            "lib2to3",
            "mailcap",
        ),
        *("msilib", "nntplib", "pipes", "popen2", "posixfile", "rexec", "smtpd", "telnetlib"),
    }
)
# Names by which libraries load or run code; matched as a whole or as the beginning of a dotted name.
_DANGEROUS_PREFIXES = (
    "IPython",
    "_distutils_hack",
    "cffi",
    "cloudpickle",
    "dill",
    "httpx",
    "hydra.utils",
    "joblib",
    "numpy.distutils",
    "numpy.f2py",
    "numpy.load",
    "numpy.testing",
    "pandas.read_pickle",
    "paramiko",
    "pip",
    "pkg_resources",
    "psutil",
    "requests",
    "setuptools",
    "torch.classes",
    "torch.hub",
    "torch.jit",
    "torch.load",
    "torch.ops",
    "torch.package",
    "torch.serialization.load",
    "torch.utils.cpp_extension",
    "torch.utils.model_zoo",
    "transformers.dynamic_module_utils",
    "urllib3",
    "yaml",
)
# A part of a dotted name, or an attribute, by which one walks from a harmless object to a harmful one.
_DANGEROUS_PARTS = frozenset(
    {
        "builtins",
        "code",
        "compile",
        "ctypes",
        "eval",
        "exec",
        "importlib",
        "marshal",
        "multiprocessing",
        "nt",
        "os",
        "pickle",
        "popen",
        "posix",
        "pty",
        "runpy",
        "shutil",
        "socket",
        "subprocess",
        "sys",
        "system",
    }
)


def modern_name(module: str, name: str) -> tuple[str, str]:
    """Return the Python 3 name of a global (``__builtin__.long`` is ``builtins.int``)."""
    if (module, name) in NAME_MAPPING:
        return NAME_MAPPING[module, name]
    return IMPORT_MAPPING.get(module, module), name


def reason_to_refuse(module: str, name: str) -> str | None:
    """Return why a global, by its modern name, may not even be stood in for; None if it may."""
    full_name = f"{module}.{name}"
    if not full_name.isascii() or not all(part.isidentifier() for part in full_name.split(".")):
        return "not the name of a class or function"
    package = module.partition(".")[0]
    if package in sys.stdlib_module_names or package in _FORMER_STDLIB:
        if package in _INERT_PACKAGES or full_name in _INERT_NAMES:
            return None
        return "no checkpoint needs this part of the standard library"
    if any(full_name == prefix or full_name.startswith(f"{prefix}.") for prefix in _DANGEROUS_PREFIXES):
        return "it loads or runs code"
    if any(is_dangerous_part(part) for part in name.split(".")):
        return "it leads to running code"
    return None


def is_dangerous_part(name: str) -> bool:
    """Tell whether an attribute leads from a harmless object towards running code."""
    return name in _DANGEROUS_PARTS or (name.startswith("__") and name.endswith("__"))
