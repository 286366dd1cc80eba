"""A model file may come from anybody: it is read by us, ours, whole and harmless, or it is refused."""

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


def changed(data, change):
    """The file after a change, by somebody who knows how to seal it."""
    model = onnx.load_from_string(data)
    del model.metadata_props[-1]
    return model_file.add_seal((change(model) or model).SerializeToString())


def says(data, name, text):
    def change(model):
        for entry in model.metadata_props:
            if entry.key == name:
                entry.value = text

    return changed(data, change)


def refused(data):
    with pytest.raises(ModelError) as refusal:
        classifier.from_bytes(data, "theirs.onnx")
    assert refusal.value.where == "theirs.onnx"
    assert refusal.value.advice
    return refusal.value.what


def test_sealing_what_was_not_changed_gives_the_same_file(data):
    assert changed(data, lambda model: None) == data
    onnx.checker.check_model(onnx.load_from_string(data))


def test_a_file_that_was_cut_off_anywhere_is_refused(data):
    for length in [0, 1, 2, 7, 100, *range(1000, len(data), len(data) // 40), len(data) - 78, len(data) - 1]:
        assert refused(data[:length])


@pytest.mark.slow
def test_a_file_with_a_single_bit_turned_is_refused(data):
    rng = np.random.default_rng(0)
    places = [*rng.integers(0, len(data), 40), *range(len(data) - 80, len(data)), *range(40)]
    for place in places:
        spoilt = bytearray(data)
        spoilt[place] ^= 1 << int(rng.integers(8))
        assert refused(bytes(spoilt))


def test_a_file_with_something_more_or_put_together_of_two_is_refused(data):
    for other in (data + b"\0", data + data, data[: len(data) // 2] + data[: len(data) // 2], b"\x08" + data):
        assert refused(other)


@given(st.binary(max_size=300))
def test_no_bytes_at_all_raise_anything_else(data):
    with pytest.raises(ModelError):
        model_file.read_metadata(data)


@given(st.lists(st.tuples(st.integers(1, 30), st.binary(max_size=40)), max_size=8))
def test_no_message_at_all_raises_anything_else(fields):
    message = b"".join(
        bytes([number << 3 & 127 | 2, len(content)]) + content for number, content in fields if number < 16
    )
    with pytest.raises(ModelError):
        model_file.read_metadata(message)


def test_another_programs_onnx_file_is_called_that(data):
    def foreign(model):
        del model.metadata_props[:]

    assert "not exported by ikebana" in refused(changed(data, foreign))
    assert "not an ONNX file" in refused(b"GIF89a, perhaps")
    assert "not an ONNX file" in refused(b"")
    assert "not an ONNX file" in refused(b"hello, a text\n")


def test_a_file_of_the_future_says_so(data):
    assert "this file was exported by a newer ikebana: it has format 2" in refused(says(data, "ikebana", "2"))


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
def test_metadata_that_cannot_be_are_refused(data, name, text, words):
    spoilt = says(data, name, text)
    if words is None:  # what is no JSON says nothing
        assert classifier.from_bytes(spoilt).threshold is None
    else:
        assert words in refused(spoilt)


def reaching_out(model):
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def reaching_out_from_within(model):
    hidden = helper.make_tensor("x", TensorProto.FLOAT, [1], [0.0])
    hidden.external_data.add(key="location", value="/etc/passwd")
    inner = helper.make_graph([helper.make_node("Constant", [], ["y"], value=hidden)], "inner", [], [])
    model.graph.node[-1].attribute.append(helper.make_attribute("then_branch", inner))


def operators_of_its_own(model):
    model.graph.node.append(helper.make_node("Run", ["photos"], ["out"], domain="com.evil"))


def a_set_of_operators(model):
    model.opset_import.append(helper.make_opsetid("com.evil", 1))


def functions_of_its_own(model):
    model.functions.add(name="f", domain="")


def a_training(model):
    model.training_info.add()


def a_loop(model):
    model.graph.node.append(helper.make_node("Loop", [], ["out"]))


def too_deep(model):
    inner = helper.make_graph([], "g", [], [])
    for _ in range(10):
        inner = helper.make_graph([helper.make_node("If", [], [], then_branch=inner)], "g", [], [])
    model.graph.node[-1].attribute.append(helper.make_attribute("then_branch", inner))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (reaching_out, "another file"),
        (reaching_out_from_within, "another file"),
        (operators_of_its_own, "custom operators"),
        (a_set_of_operators, "custom operators"),
        (functions_of_its_own, "more than a network"),
        (a_training, "more than a network"),
        (a_loop, "loop"),
        (too_deep, "nested too deeply"),
    ],
)
def test_what_ikebana_never_writes_is_refused_before_a_runtime_sees_it(data, change, words, monkeypatch):
    spoilt = changed(data, change)
    monkeypatch.setattr(classifier, "_create_session", lambda *_: pytest.fail("the runtime was given the file"))
    assert words in refused(spoilt)


def other_outputs(model):
    model.graph.output[0].name = "something"
    model.graph.node[-1].output[0] = "something"


def unknown_operator(model):
    model.graph.node[0].op_type = "NoSuchOperator"


def an_opset_of_the_future(model):
    model.opset_import[0].version = 999


@pytest.mark.parametrize("change", [other_outputs, unknown_operator, an_opset_of_the_future])
def test_a_sealed_file_that_cannot_run_is_refused_with_words(data, change):
    assert refused(changed(data, change))


def test_a_path_that_is_no_model_file_is_refused_with_what_to_try(tmp_path, paper_run):
    with pytest.raises(ModelError, match="no such model file"):
        classifier.load(tmp_path / "gone.onnx")
    with pytest.raises(ModelError, match="a folder") as refusal:
        classifier.load(paper_run.folder)
    assert f"ikebana export {paper_run.folder}" in str(refusal.value)


def test_what_it_says_about_itself_is_json_throughout(data):
    for entry in onnx.load_from_string(data).metadata_props:
        json.loads(entry.value)
