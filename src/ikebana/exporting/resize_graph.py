"""Resizing inside the ONNX graph, bit-equal to Pillow's antialiased triangle filter.

ONNX's own `Resize` is not used: runtimes differ in it by whole grey levels. Here all values are
integers. Pillow's weights are integers in units of 2^-22, so a resize is two products with integer
matrices, each rounded to grey levels. The weights are split into two digits of 11 bits. Then
weights, products and sums are integers that float32 holds exactly, in any order of summation.
Every runtime must give the same images.

The weight of source pixel x for target pixel o, where the filter is wider than a source pixel when
the photo shrinks:

    t = max(0, 2 max(crop, side) - |(2x + 1 - offset) side - (2o + 1) crop|)
    offset = length - crop
    weight = round(2^22 t / sum of t over x)

`length` is the photo's width or height and `side` the image size. `crop` is the part of `length`
that the image shows: all of it with squash, the shorter edge with crop. A target pixel depends on
few source pixels, so each block of 16 target pixels is computed from the range of source pixels
that it needs. That is a twelfth of the arithmetic for a phone's photo.

Source: Pillow, src/libImaging/Resample.c; the order of the passes is that of Pillow 13 (before it,
always columns first).
"""

from typing import TYPE_CHECKING

from ikebana.recipe import Resize

if TYPE_CHECKING:
    from onnx import ModelProto

# onnxruntime since 1.14 and its web build support this opset.
ONNX_OPSET = 18
# The version of the file format that belongs to the opset.
ONNX_IR_VERSION = 8
# Target pixels computed together.
BLOCK_PIXELS = 16

# Resizes one axis: lines uint8 or float [length, ...] to integer-valued float [side, ...].
AXIS_FUNCTION = f"""
<domain: "ikebana", opset_import: ["" : {ONNX_OPSET}]>
one_axis (lines, length, crop, side) => (resized)
{{
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    two = Constant <value_int = 2> ()
    block = Constant <value_int = {BLOCK_PIXELS}> ()
    axis_0 = Constant <value_ints = [0]> ()
    axis_1 = Constant <value_ints = [1]> ()
    axis_2 = Constant <value_ints = [2]> ()

    larger = Max (crop, side)
    reach = Mul (larger, two)
    offset = Sub (length, crop)
    side_and_block = Add (side, block)
    up_to_block = Sub (side_and_block, one)
    blocks = Div (up_to_block, block)
    block_number = Range (zero, blocks, one)
    first_target = Mul (block_number, block)

    one_more = Add (block, one)
    seen_by_block = Mul (one_more, larger)
    seen = Div (seen_by_block, side)
    seen_at_most = Add (seen, two)
    stretch = Min (seen_at_most, length)
    first_doubled = Mul (first_target, two)
    first_middle = Add (first_doubled, one)
    first_centre = Mul (first_middle, crop)
    offset_scaled = Mul (offset, side)
    first_in_photo = Add (first_centre, offset_scaled)
    first_reached = Sub (first_in_photo, reach)
    not_before = Max (first_reached, zero)
    side_doubled = Mul (side, two)
    wanted_start = Div (not_before, side_doubled)
    last_start = Sub (length, stretch)
    start = Min (wanted_start, last_start)
    start_column = Unsqueeze (start, axis_1)
    along = Range (zero, stretch, one)
    source = Add (start_column, along)

    source_doubled = Mul (source, two)
    source_middle = Add (source_doubled, one)
    source_in_crop = Sub (source_middle, offset)
    source_scaled = Mul (source_in_crop, side)
    source_row = Unsqueeze (source_scaled, axis_1)
    first_column = Unsqueeze (first_target, axis_1)
    within_block = Range (zero, block, one)
    target = Add (first_column, within_block)
    target_doubled = Mul (target, two)
    target_middle = Add (target_doubled, one)
    target_scaled = Mul (target_middle, crop)
    target_column = Unsqueeze (target_scaled, axis_2)
    difference = Sub (source_row, target_column)
    distance = Abs (difference)
    height = Sub (reach, distance)
    triangle = Max (height, zero)

    sum = ReduceSum <keepdims = 1> (triangle, axis_2)
    total = Max (sum, one)
    two_to_11 = Constant <value_int = 2048> ()
    shifted = Mul (triangle, two_to_11)
    high = Div (shifted, total)
    high_part = Mul (high, total)
    rest = Sub (shifted, high_part)
    two_to_5 = Constant <value_int = 32> ()
    rest_shifted = Mul (rest, two_to_5)
    middle = Div (rest_shifted, total)
    middle_part = Mul (middle, total)
    last_rest = Sub (rest_shifted, middle_part)
    two_to_7 = Constant <value_int = 128> ()
    last_shifted = Mul (last_rest, two_to_7)
    last_and_half = Add (last_shifted, total)
    total_doubled = Mul (total, two)
    last = Div (last_and_half, total_doubled)
    two_to_6 = Constant <value_int = 64> ()
    middle_shifted = Mul (middle, two_to_6)
    low = Add (middle_shifted, last)
    digits = Concat <axis = 1> (high, low)
    weights = Cast <to = 1> (digits)

    rows = Flatten <axis = 1> (lines)
    gathered = Gather (rows, source)
    levels = Cast <to = 1> (gathered)
    products = MatMul (weights, levels)
    sum_of_high, sum_of_low = Split <axis = 1, num_outputs = 2> (products)
    half = Constant <value_float = 2097152.0> ()
    digit = Constant <value_float = 2048.0> ()
    low_and_half = Add (sum_of_low, half)
    low_digits = Div (low_and_half, digit)
    carried = Floor (low_digits)
    sum_of_digits = Add (sum_of_high, carried)
    in_levels = Div (sum_of_digits, digit)
    rounded = Floor (in_levels)

    other_axes = Shape <start = 1> (lines)
    targets = Mul (blocks, block)
    targets_vector = Unsqueeze (targets, axis_0)
    shape = Concat <axis = 0> (targets_vector, other_axes)
    joined = Reshape <allowzero = 1> (rounded, shape)
    side_vector = Unsqueeze (side, axis_0)
    resized = Slice (joined, axis_0, side_vector)
}}
"""

# The graph has three branches. Photos of the right size pass unchanged. The others are resized
# columns first, or rows first where a photo loses more than twice as many rows as columns (as in
# Pillow 13). An `If` would choose, but OpenVINO computes wrong results after one. So each branch
# gets all photos of the call or none, and the outputs are concatenated.
RESIZE_GRAPH = """
<ir_version: {ir_version}, opset_import: ["" : {opset}, "ikebana" : 1]>
front (uint8[N, H, W, 3] photos) => (float[N, 3, {image_size}, {image_size}] squares)
{{
    photos_vector = Shape <start = 0, end = 1> (photos)
    height_vector = Shape <start = 1, end = 2> (photos)
    width_vector = Shape <start = 2, end = 3> (photos)
    height = Squeeze (height_vector)
    width = Squeeze (width_vector)
    side = Constant <value_int = {image_size}> ()
    two = Constant <value_int = 2> ()
    none = Constant <value_ints = [0]> ()
    rows_lost = Sub (height, side)
    columns_lost = Sub (width, side)
    columns_lost_doubled = Mul (columns_lost, two)
    many_rows_lost = Greater (rows_lost, columns_lost_doubled)
    some_rows_lost = Greater (height, side)
    rows_first = And (many_rows_lost, some_rows_lost)
    first_length = Where (rows_first, height, width)
    second_length = Where (rows_first, width, height)
    shorter = Min (height, width)

    as_high = Equal (height, side)
    as_wide = Equal (width, side)
    is_square = And (as_high, as_wide)
    axis_0 = Constant <value_ints = [0]> ()
    side_vector = Unsqueeze (side, axis_0)
    three = Constant <value_ints = [3]> ()
    all = Constant <value_ints = [-1]> ()

    ready_count = Where (is_square, photos_vector, none)
    ready = Slice (photos, none, ready_count, none)
    ready_shape = Concat <axis = 0> (ready_count, side_vector, side_vector, three)
    ready_square = Reshape <allowzero = 1> (ready, ready_shape)
    ready_channels = Transpose <perm = [0, 3, 1, 2]> (ready_square)
    untouched = Cast <to = 1> (ready_channels)

    count = Sub (photos_vector, ready_count)
    lying_count = Where (rows_first, count, none)
    standing_count = Sub (count, lying_count)
    lying = Slice (photos, none, lying_count, none)
    standing = Slice (photos, none, standing_count, none)
    rows_of_lying = Transpose <perm = [1, 0, 2, 3]> (lying)
    columns_of_standing = Transpose <perm = [2, 0, 1, 3]> (standing)
    levels_of_lying = Reshape (rows_of_lying, all)
    levels_of_standing = Reshape (columns_of_standing, all)
    levels = Concat <axis = 0> (levels_of_lying, levels_of_standing)
    first_vector = Unsqueeze (first_length, axis_0)
    second_vector = Unsqueeze (second_length, axis_0)
    shape = Concat <axis = 0> (first_vector, count, second_vector, three)
    lines = Reshape <allowzero = 1> (levels, shape)

    narrow = ikebana.one_axis (lines, first_length, {first_crop}, side)
    turned = Transpose <perm = [2, 0, 1, 3]> (narrow)
    small = ikebana.one_axis (turned, second_length, {second_crop}, side)
    if_rows_first = Transpose <perm = [2, 3, 1, 0]> (small)
    if_columns_first = Transpose <perm = [2, 3, 0, 1]> (small)
    resized = Where (rows_first, if_rows_first, if_columns_first)
    squares = Concat <axis = 0> (untouched, resized)
}}
"""


def build_resize_graph(image_size: int, method: Resize) -> "ModelProto":
    """Build the graph before the network: decoded photos to network input.

    It maps `photos` uint8 [N, H, W, 3] to `squares` float [N, 3, image_size, image_size], 0 to 255.
    """
    from onnx import inliner, parser

    first, second = ("shorter", "shorter") if method == "crop" else ("first_length", "second_length")
    text = RESIZE_GRAPH.format(
        ir_version=ONNX_IR_VERSION, opset=ONNX_OPSET, image_size=image_size, first_crop=first, second_crop=second
    )
    graph = inliner.inline_local_functions(parser.parse_model(text + AXIS_FUNCTION))
    # The functions are inlined: their domain is no longer used.
    del graph.opset_import[1:]
    return graph
