"""Entry of every program in bin/: `python3 -I bin/_llm/main.py PROGRAM [ARG...]`.

`-I` keeps the caller's PYTHON* variables, `~/.local` and working directory out, so the library's
own folder has to be put on the path here.
"""

from __future__ import annotations

import os
import sys

PROGRAMS = {
    "llm-run": "_llm.run",
    "llm-doctor": "_llm.doctor.main",
    "llm-record": "_llm.record.main",
    "setup": "_llm.setup",
    "image": "_llm.image",
    "verify-image": "_llm.contents.verify",
    "diff-image": "_llm.contents.difference",
    "audit": "_llm.contents.audit",
    "sizes": "_llm.contents.sizes",
    "sbom": "_llm.contents.sbom",
    "archive": "_llm.images.archive",
    "sign": "_llm.signing.sign",
    "verify": "_llm.signing.verify",
    "release": "_llm.releasing.release",
    "import": "_llm.releasing.receive",
    "install": "_llm.install",
    "uninstall": "_llm.uninstall",
    "complete": "_llm.complete",
}


def main() -> int:
    """Run the program named by the first argument and return its exit status."""
    # Without links: what is imported late comes from the build that was started, even if the
    # installation was replaced in between.
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
    from _llm.errors import LLMError, report

    name = sys.argv[1]
    try:
        # importlib.import_module does the same, but its import costs time at every start.
        __import__(PROGRAMS[name])
        status = int(sys.modules[PROGRAMS[name]].main(sys.argv[2:]))
        sys.stdout.flush()
        return status
    except LLMError as error:
        return report(name, [error])
    except BrokenPipeError:  # `llm-run --help | head`
        # Python flushes once more at its end, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        what = f"{error.filename} can't be used" if error.filename else "the system refused"
        fix = "correct its permissions or make room; LLM_CACHE_DIR, LLM_IMAGE_DIR name other ones"
        return report(name, [LLMError(what, error.strerror or str(error), fix)])
    except KeyboardInterrupt:
        # Die of the signal itself, so that a calling shell or make sees an interruption.
        import signal

        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
        return 130


if __name__ == "__main__":
    sys.exit(main())
