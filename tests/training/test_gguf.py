"""GGUF from asking for it to the download, with a converter that stands for llama.cpp's."""

from __future__ import annotations

import hashlib
import sys

import pytest
from django.urls import reverse

from training import exports, store, supervision
from training.exceptions import Rejected
from training.execution import Export
from training.execution.exports import converter_command
from training.models import CheckpointExport, Job
from training.rundir import RunDir

CONVERTER = """
import sys
import numpy
from gguf import GGUFWriter
model, flag, outfile = sys.argv[1:]
if "broken" in model or flag != "--outfile":
    sys.exit("I do not know this architecture.")
writer = GGUFWriter(outfile, "llama")
writer.add_tensor("token_embd.weight", numpy.arange(6, dtype=numpy.float32))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
"""


@pytest.fixture
def converter(settings, tmp_path):
    """The setting names a script that contains a space, as paths do."""
    script = tmp_path / "my converter.py"
    script.write_text(CONVERTER)
    settings.GGUF_CONVERTER = f"'{script}'"
    return script


@pytest.fixture
def page(project, policy, sign_in, reviewer):
    def page() -> str:
        url = reverse("training:checkpoint", args=[project.slug, policy.uuid])
        return sign_in(reviewer).get(url).content.decode()

    return page


def _carry_out(export: CheckpointExport) -> CheckpointExport:
    supervision.execute(export, Export)
    export.refresh_from_db()
    return export


def test_a_checkpoint_is_converted_offered_and_downloaded_by_its_hash(
    project, policy, converter, page, sign_in, reviewer
):
    assert "Prepare GGUF" in page()
    client = sign_in(reviewer)
    client.post(reverse("training:prepare-gguf", args=[project.slug, policy.uuid]))
    export = CheckpointExport.objects.get(variant="gguf")
    assert "Waiting for a worker" in page()
    assert (_carry_out(export).state, export.error) == (Job.State.SUCCEEDED, "")
    content = store.archive_path(policy.uuid, "gguf").read_bytes()
    assert content[:4] == b"GGUF"
    assert (export.sha256, export.size_bytes) == (hashlib.sha256(content).hexdigest(), len(content))
    assert "base.gguf" in page()
    assert export.sha256 in page()
    response = client.get(reverse("training:download-gguf", args=[project.slug, policy.uuid]))
    assert b"".join(response.streaming_content) == content
    assert response.headers["ETag"] == f'"{export.sha256}"'
    assert response.headers["Content-Disposition"] == 'attachment; filename="base.gguf"'
    assert not RunDir.of(export.uuid).path.exists()


def test_beside_gguf_there_are_full_weights_as_ever(policy, converter):
    both = {exports.request_export(checkpoint=policy, variant=variant) for variant in ("merged", "gguf", "gguf")}
    assert {export.variant for export in both} == {"merged", "gguf"}
    for export in both:
        assert _carry_out(export).state == Job.State.SUCCEEDED
    assert store.archive_path(policy.uuid, "merged").read_bytes()[:2] == b"PK"


def test_what_a_converter_says_when_it_fails_is_on_the_page_and_it_can_be_tried_again(policy, converter, page):
    converter.write_text("import sys\nsys.exit('I do not know this architecture.')")
    export = _carry_out(exports.request_export(checkpoint=policy, variant="gguf"))
    assert (export.state, export.error_code) == (Job.State.FAILED, "converter_failed")
    assert "exit status 1: I do not know this architecture." in page()
    assert "Prepare GGUF" in page()
    converter.write_text(CONVERTER)
    assert _carry_out(exports.request_export(checkpoint=policy, variant="gguf")).state == Job.State.SUCCEEDED


def test_without_a_converter_the_page_says_so_and_nothing_is_queued(project, policy, page, sign_in, reviewer):
    assert "no converter is set up on this server" in page()
    with pytest.raises(Rejected, match="No GGUF converter is set up here"):
        exports.request_export(checkpoint=policy, variant="gguf")
    url = reverse("training:prepare-gguf", args=[project.slug, policy.uuid])
    assert "TIEBREAK_GGUF_CONVERTER" in sign_in(reviewer).post(url, follow=True).content.decode()
    assert not CheckpointExport.objects.exists()


def test_a_script_is_run_by_this_python_and_a_command_as_it_is():
    assert converter_command("/opt/llama.cpp/convert_hf_to_gguf.py --outtype q8_0") == [
        *(sys.executable, "/opt/llama.cpp/convert_hf_to_gguf.py", "--outtype", "q8_0"),
    ]
    assert converter_command("/opt/venv/bin/python '/opt/a b.py'") == ["/opt/venv/bin/python", "/opt/a b.py"]
    assert converter_command("llama-convert-hf-to-gguf") == ["llama-convert-hf-to-gguf"]
