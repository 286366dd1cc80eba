"""Model files from unknown sources are complete, unmodified and harmless, or they are refused."""

import json

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from ikebana.errors import ModelError
from ikebana.inference import classifier, model_file


@pytest.fixture(scope="module")
def data(paper_model):
    return paper_model.read_bytes()


def reseal(data, change):
    """Change the file, and seal it again as an attacker could."""
    model = onnx.load_from_string(data)
    del model.metadata_props[-1]
    return model_file.add_seal((change(model) or model).SerializeToString())


def set_metadata(data, name, text):
    def change(model):
        for entry in model.metadata_props:
            if entry.key == name:
                entry.value = text

    return reseal(data, change)


def get_refusal(data):
    with pytest.raises(ModelError) as refusal:
        classifier.from_bytes(data, "theirs.onnx")
    assert refusal.value.where == "theirs.onnx"
    assert refusal.value.advice
    return refusal.value.what


def test_sealing_an_unchanged_file_gives_the_same_bytes(data):
    assert reseal(data, lambda model: None) == data
    onnx.checker.check_model(onnx.load_from_string(data))


def test_a_truncated_file_is_refused(data):
    for length in [0, 1, 2, 7, 100, *range(1000, len(data), len(data) // 40), len(data) - 78, len(data) - 1]:
        assert get_refusal(data[:length])


@pytest.mark.slow
def test_a_file_with_a_single_flipped_bit_is_refused(data):
    rng = np.random.default_rng(0)
    places = [*rng.integers(0, len(data), 40), *range(len(data) - 80, len(data)), *range(40)]
    for place in places:
        spoilt = bytearray(data)
        spoilt[place] ^= 1 << int(rng.integers(8))
        assert get_refusal(bytes(spoilt))


def test_a_file_with_appended_bytes_or_made_of_two_files_is_refused(data):
    for other in (data + b"\0", data + data, data[: len(data) // 2] + data[: len(data) // 2], b"\x08" + data):
        assert get_refusal(other)


@given(st.binary(max_size=300))
def test_any_other_bytes_raise_a_model_error(data):
    with pytest.raises(ModelError):
        model_file.read_metadata(data)


@given(st.lists(st.tuples(st.integers(1, 30), st.binary(max_size=40)), max_size=8))
def test_any_protobuf_message_raises_a_model_error(fields):
    message = b"".join(
        bytes([number << 3 & 127 | 2, len(content)]) + content for number, content in fields if number < 16
    )
    with pytest.raises(ModelError):
        model_file.read_metadata(message)


def test_an_onnx_file_of_another_program_is_called_so(data):
    def foreign(model):
        del model.metadata_props[:]

    assert "not exported by ikebana" in get_refusal(reseal(data, foreign))
    assert "not an ONNX file" in get_refusal(b"GIF89a, perhaps")
    assert "not an ONNX file" in get_refusal(b"")
    assert "not an ONNX file" in get_refusal(b"hello, a text\n")


def test_a_file_of_a_newer_format_is_called_so(data):
    assert "this file was exported by a newer ikebana: it has format 2" in get_refusal(
        set_metadata(data, "ikebana", "2")
    )


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("classes", '["a", "b"]', "lists 2 classes"),
        ("classes", '["a"]', "not a list of names"),
        ("classes", '["a", "b", "c", "d", 5]', "not a list of names"),
        ("classes", '["a", "b", "c", "d", "a"]', "a class is listed twice"),
        ("classes", "no JSON", "not a list of names"),
        ("classes", "[" * 100_000, "not a list of names"),
        ("image_size", "-3", "image size is not"),
        ("image_size", "1e9", "image size is not"),
        ("image_size", "true", "image size is not"),
        ("resize", '"stretch"', "the resize method is unknown"),
        ("threshold", "NaN", None),
        ("threshold", "7", "threshold"),
        ("ikebana", "true", "checksum of this model file does not match"),
        ("ikebana", '"1"', "checksum of this model file does not match"),
    ],
)
def test_invalid_metadata_is_refused(data, name, text, words):
    spoilt = set_metadata(data, name, text)
    if words is None:  # invalid JSON is ignored
        assert classifier.from_bytes(spoilt).threshold is None
    else:
        assert words in get_refusal(spoilt)


def add_external_data(model):
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def add_nested_external_data(model):
    hidden = helper.make_tensor("x", TensorProto.FLOAT, [1], [0.0])
    hidden.external_data.add(key="location", value="/etc/passwd")
    inner = helper.make_graph([helper.make_node("Constant", [], ["y"], value=hidden)], "inner", [], [])
    model.graph.node[-1].attribute.append(helper.make_attribute("then_branch", inner))


def add_custom_operators(model):
    model.graph.node.append(helper.make_node("Run", ["photos"], ["out"], domain="com.evil"))


def add_operator_set(model):
    model.opset_import.append(helper.make_opsetid("com.evil", 1))


def add_functions(model):
    model.functions.add(name="f", domain="")


def add_training(model):
    model.training_info.add()


def add_loop(model):
    model.graph.node.append(helper.make_node("Loop", [], ["out"]))


def nest_deeply(model):
    inner = helper.make_graph([], "g", [], [])
    for _ in range(10):
        inner = helper.make_graph([helper.make_node("If", [], [], then_branch=inner)], "g", [], [])
    model.graph.node[-1].attribute.append(helper.make_attribute("then_branch", inner))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (add_external_data, "another file"),
        (add_nested_external_data, "another file"),
        (add_custom_operators, "custom operators"),
        (add_operator_set, "custom operators"),
        (add_functions, "more than a network"),
        (add_training, "more than a network"),
        (add_loop, "loop"),
        (nest_deeply, "nested too deeply"),
    ],
)
def test_a_graph_that_ikebana_never_writes_is_refused_before_the_runtime_loads_it(data, change, words, monkeypatch):
    spoilt = reseal(data, change)
    monkeypatch.setattr(classifier, "_create_session", lambda *_: pytest.fail("the runtime was given the file"))
    assert words in get_refusal(spoilt)


def change_outputs(model):
    model.graph.output[0].name = "something"
    model.graph.node[-1].output[0] = "something"


def add_unknown_operator(model):
    model.graph.node[0].op_type = "NoSuchOperator"


def set_future_opset(model):
    model.opset_import[0].version = 999


@pytest.mark.parametrize("change", [change_outputs, add_unknown_operator, set_future_opset])
def test_a_sealed_file_that_cannot_run_is_refused_with_a_message(data, change):
    assert get_refusal(reseal(data, change))


def test_a_path_that_is_not_a_model_file_is_refused_with_advice(tmp_path, paper_run):
    with pytest.raises(ModelError, match="no such model file"):
        classifier.load(tmp_path / "gone.onnx")
    with pytest.raises(ModelError, match="a folder") as refusal:
        classifier.load(paper_run.folder)
    assert f"ikebana export {paper_run.folder}" in str(refusal.value)


def test_all_metadata_values_are_json(data):
    for entry in onnx.load_from_string(data).metadata_props:
        json.loads(entry.value)
