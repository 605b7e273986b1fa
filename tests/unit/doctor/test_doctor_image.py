"""What llm-doctor says of the image that a site requires something of."""

from __future__ import annotations

from pathlib import Path

from _llm.doctor.context import Context
from _llm.doctor.finding import FAIL, OK, Finding
from _llm.doctor.image import image
from _llm.settings import load_settings
from _llm.sif import payload_digest


def found(home: Path, env: dict[str, str], profile: str) -> Finding:
    file = home / "sites" / "ours.ini"
    file.write_text(profile, encoding="utf-8")
    settings = load_settings(env, str(home), str(file))
    context = Context(settings, env, str(home), "token", (), False, False)
    findings = image(context, lambda text: None)
    assert [f.check for f in findings] == ["image", "image file", "image requirement"]
    return findings[-1]


def test_the_requirement(
    home: Path, env: dict[str, str], images: Path, tmp_path: Path
) -> None:
    env.update(LLM_IMAGE_DIR=str(images), LLM_LOCAL_DIR=str(tmp_path), LLM_IMAGE="llm-cpu")
    assert found(home, env, "").status == OK
    digest = payload_digest(str(images / "llm-cpu.sif"))
    good = found(home, env, f"[container]\nrequire = digest\ndigests = {digest}\n")
    assert good.status == OK and digest in good.text and "ours.ini, line 2" in good.text
    bad = found(home, env, f"[container]\nrequire = digest\ndigests = sha256:{'0' * 64}\n")
    assert bad.status == FAIL and digest in bad.text and bad.fix
    bad = found(home, env, "[container]\nrequire = signature\n")
    assert bad.status == FAIL and "no key is named" in bad.text
