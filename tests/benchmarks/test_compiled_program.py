"""The reader of compiled programs: a hand-written program, whose kernels are known."""

from __future__ import annotations

import pytest

TEXT = """HloModule tiny, is_scheduled=true

%cut (p0: f32[7,4,8], p1: s32[]) -> f32[4,8] {
  %p0 = f32[7,4,8]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %piece = f32[1,4,8]{2,1,0} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,4,8}
  ROOT %flat = f32[4,8]{1,0} bitcast(%piece)
}

%keep (p0: f32[7,4,8], p1: f32[4,8], p2: s32[]) -> f32[7,4,8] {
  %p0 = f32[7,4,8]{2,1,0} parameter(0)
  %p1 = f32[4,8]{1,0} parameter(1)
  %p2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  %wide = f32[1,4,8]{2,1,0} bitcast(%p1)
  ROOT %new = f32[7,4,8]{2,1,0} dynamic-update-slice(%p0, %wide, %p2, %zero, %zero)
}

%body (t: (s32[], f32[7,4,8])) -> (s32[], f32[7,4,8]) {
  %t = (s32[], f32[7,4,8]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %stack = f32[7,4,8]{2,1,0} get-tuple-element(%t), index=1
  %slice = f32[4,8]{1,0} fusion(%stack, %i), kind=kLoop, calls=%cut
  %put = f32[7,4,8]{2,1,0} fusion(%stack, %slice, %i), kind=kLoop, calls=%keep
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  ROOT %out = (s32[], f32[7,4,8]{2,1,0}) tuple(%next, %put)
}

%limit (t: (s32[], f32[7,4,8])) -> pred[] {
  %t = (s32[], f32[7,4,8]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %n = s32[] constant(7)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

%small (p: f32[4,8]) -> f32[4,8] {
  %p = f32[4,8]{1,0} parameter(0)
  ROOT %same = f32[4,8]{1,0} copy(%p)
}

%large (p: f32[4,8]) -> f32[4,8] {
  %p = f32[4,8]{1,0} parameter(0)
  %once = f32[4,8]{1,0} negate(%p)
  ROOT %twice = f32[4,8]{1,0} negate(%once)
}

ENTRY %main (a: bf16[4,16], b: bf16[16,8], s: f32[7,4,8], q: bf16[2,32,4,64], w: pred[]) -> f32[4,8] {
  %a = bf16[4,16]{1,0} parameter(0)
  %b = bf16[16,8]{1,0} parameter(1)
  %s = f32[7,4,8]{2,1,0} parameter(2)
  %q = bf16[2,32,4,64]{3,2,1,0} parameter(3)
  %w = pred[] parameter(4)
  %dot.1 = f32[4,8]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}, metadata={op_name="jit(f)/dot"}
  %gemm = (f32[4,8]{1,0}, s8[64]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}
  %fmha = (bf16[2,32,4,64]{3,1,2,0}, u8[0]{0}) custom-call(%q, %q, %q), custom_call_target="__cudnn$fmhaSoftmax", backend_config={"cudnn_fmha_backend_config":{"intermediate_tensor_shape": {"element_type": "BF16", "dimensions": ["2", "4", "32", "32"]}, "mask_type": "CAUSAL"}}
  %start = s32[] constant(0)
  %init = (s32[], f32[7,4,8]{2,1,0}) tuple(%start, %s)
  %loop = (s32[], f32[7,4,8]{2,1,0}) while(%init), condition=%limit, body=%body
  ROOT %chosen = f32[4,8]{1,0} conditional(%w, %dot.1, %dot.1), true_computation=%small, false_computation=%large
}
"""  # noqa: E501


@pytest.fixture
def reader(script):
    return script("compiled_program")


def test_kernels_of_a_program_with_their_bytes_and_flops(reader):
    found = {kernel.name: kernel for kernel in reader.kernels(TEXT)}
    assert list(found) == ["dot.1", "gemm", "fmha", "slice", "put", "next", "once", "twice"]
    dot = 4 * 16 * 2 + 16 * 8 * 2 + 4 * 8 * 4
    bytes_of = {name: kernel.bytes for name, kernel in found.items()}
    assert bytes_of["dot.1"] == dot and bytes_of["gemm"] == dot + 64
    assert bytes_of["fmha"] == 4 * 2 * 32 * 4 * 64 * 2  # three operands and a result
    assert bytes_of["slice"] == 2 * 4 * 8 * 4 + 4  # the slice, not the stack, and its number
    assert bytes_of["put"] == 2 * 4 * 8 * 4 + 4  # in place
    flops = {name: kernel.flops for name, kernel in found.items() if kernel.flops}
    assert flops == {
        "dot.1": 2 * 4 * 16 * 8,
        "gemm": 2 * 4 * 16 * 8,
        "fmha": 4 * 2 * 4 * (32 * 32 // 2) * 64,
    }
    assert found["dot.1"].dtype == "bf16" and found["dot.1"].source == "jit(f)/dot"
    assert (found["slice"].label, found["put"].label) == (
        "fusion:loop",
        "fusion:dynamic-update-slice",
    )


def test_a_loop_counts_as_often_as_it_turns_and_the_branch_that_moves_most(reader):
    found = {kernel.name: kernel for kernel in reader.kernels(TEXT)}
    assert {kernel.times for name, kernel in found.items() if kernel.loop} == {7}
    assert found["put"].loop == "loop" and found["put"].turns == 7 and not found["dot.1"].loop
    known = TEXT.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"5"}}')
    assert {k.times for k in reader.kernels(known) if k.loop} == {5}
    assert reader.conditionals(TEXT) == 1
    with pytest.raises(ValueError, match="no compiled program"):
        reader.kernels("HloModule empty")


def test_time_is_the_dearer_of_flops_and_bytes_and_the_start_of_each_kernel(reader):
    rates = reader.Rates({"bf16": 1e3, "f32": 1e2}, (1e4, 1e3), 1e3, 0.5, clock=100.0)
    found = {kernel.name: kernel for kernel in reader.kernels(TEXT)}
    assert reader.seconds(found["dot.1"], rates) == 1.024 + 0.5  # its FLOPs
    assert reader.seconds(found["slice"], rates) == 0.260 + 0.5  # its bytes
    assert reader.seconds(found["fmha"], rates) == 131.072 + 0.5
    assert reader.seconds(found["put"]._replace(cycles=300), rates) == 3.0  # what a TPU's says
    sums = reader.summary(found.values(), rates)
    assert sums.kernels == 5 + 3 * 7 and sums.kernels_a_turn == 3
    assert sums.flops == 2 * 1024 + found["fmha"].flops
    assert sums.bytes == sum(kernel.times * kernel.bytes for kernel in found.values())
    seconds = sum(kernel.times * reader.seconds(kernel, rates) for kernel in found.values())
    assert sums.seconds == pytest.approx(seconds)


def test_an_instruction_may_stand_on_several_lines(script):
    """A kernel of a TPU does: its lines are not indented, and one of them begins with a bracket."""
    text = """HloModule one

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %b = f32[8]{0} custom-call(%a), custom_call_target="tpu_custom_call", kernel_metadata={
"block": "8"
}}, metadata={op_name="b"}
  ROOT %c = f32[8]{0} negate(%b)
}
"""
    found = script("compiled_program").kernels(text)
    assert [(kernel.label, kernel.source) for kernel in found] == [
        ("call:tpu_custom_call", "b"),
        ("negate", ""),
    ]


@pytest.mark.parametrize(("part", "products"), [("fwd_residuals", 2), ("dq_no_residuals", 3)])
def test_splash_has_the_flops_of_its_products(script, part, products):
    """Its operands tell the sizes; it is given the rows of the queries where it is causal."""
    name = f"splash_mqa_{part}.1"
    text = f"""HloModule one

ENTRY %main () -> f32[2] {{
  %q = bf16[2,3,1,256,64]{{4,3,2,1,0}} parameter(0)
  %k = bf16[2,3,512,64]{{3,2,1,0}} parameter(1)
  %rows = s32[256,128]{{1,0}} parameter(2)
  ROOT %{name} = f32[2] custom-call(%q, %k, %rows), custom_call_target="tpu_custom_call"
}}
"""
    program = script("compiled_program")
    (kernel,) = program.kernels(text)
    assert kernel.flops == products * 2 * 2 * 3 * 256 * 512 * 64 // 2
    (whole,) = program.kernels(text.replace("(%q, %k, %rows)", "(%q, %k)"))
    assert whole.flops == 2 * kernel.flops
    rates = program.Rates({"bf16": 1e12, "f32": 1e12}, (1e9, 2e9), 1e15, 0.0, clock=1.0)
    assert program.seconds(kernel, rates) == kernel.flops / (1e9 if products == 2 else 2e9)
