// The ops and their shape functions.
#include "arguments.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace keras_rtrl {
namespace {

using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

absl::Status MatchHandle(InferenceContext* c, const Argument& argument, ShapeHandle handle, Dims* dims) {
  if (!c->RankKnown(handle)) return absl::OkStatus();
  std::vector<int64_t> shape;
  for (int i = 0; i < c->Rank(handle); ++i) shape.push_back(c->Value(c->Dim(handle, i)));
  return dims->Match(argument, shape);
}

absl::Status InferShapes(InferenceContext* c, absl::Span<const Argument> inputs, absl::Span<const Argument> outputs) {
  std::string name;
  TF_RETURN_IF_ERROR(c->GetAttr("cell", &name));
  int cell;
  TF_RETURN_IF_ERROR(FindCell(name, &cell));
  Dims dims(*keras_rtrl_cell_info(cell));
  // Twice: what a later argument teaches may not fit an earlier one.
  for (int pass = 0; pass < 2; ++pass) {
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (inputs[i].count == Count::kResource) {  // resources come first, one input each
        const auto* variable = c->input_handle_shapes_and_types(i);
        if (variable && !variable->empty()) {
          TF_RETURN_IF_ERROR(MatchHandle(c, inputs[i], variable->front().shape, &dims));
        }
        continue;
      }
      std::vector<ShapeHandle> handles;
      TF_RETURN_IF_ERROR(c->input(inputs[i].name, &handles));
      TF_RETURN_IF_ERROR(dims.MatchCount(inputs[i], handles.size()));
      for (ShapeHandle handle : handles) TF_RETURN_IF_ERROR(MatchHandle(c, inputs[i], handle, &dims));
    }
  }
  for (const Argument& output : outputs) {
    std::vector<tensorflow::shape_inference::DimensionHandle> shape;
    for (const char* dim = output.dims; *dim; ++dim) {
      const int64_t size = dims[*dim];
      shape.push_back(size == Dims::kUnknown ? c->UnknownDim() : c->MakeDim(size));
    }
    const std::vector<ShapeHandle> handles(dims.CountOf(output), c->MakeShape(shape));
    TF_RETURN_IF_ERROR(c->set_output(output.name, handles));
  }
  return absl::OkStatus();
}

// Counts the changes of the ops' arguments and results; native.py knows the number that it calls.
extern "C" int keras_rtrl_ops_version(void) { return 4; }

#define KERAS_RTRL_SHAPES(OP) \
  SetShapeFn([](InferenceContext* c) { return InferShapes(c, k##OP##Inputs, k##OP##Outputs); })

REGISTER_OP("KerasRtrlForward")
    .Input("state: T")
    .Input("u: T")
    .Input("rho: P * T")
    .Input("reset: NR * bool")
    .Input("mask: NM * bool")
    .Output("saved: T")
    .Output("states: m * T")
    .Attr("cell: string")
    .Attr("T: {float, double}")
    .Attr("P: int >= 0")
    .Attr("m: int >= 1")
    .Attr("NR: int >= 0")
    .Attr("NM: int >= 0")
    .KERAS_RTRL_SHAPES(Forward)
    .Doc("Forward scan: all T steps of the recurrence of a cell.");

REGISTER_OP("KerasRtrlAdjoint")
    .Input("state: T")
    .Input("saved: T")
    .Input("states: m * T")
    .Input("cotangents: m * T")
    .Input("rho: P * T")
    .Input("reset: NR * bool")
    .Input("mask: NM * bool")
    .Output("du: T")
    .Output("d_rho: T")
    .Output("start: T")
    .Output("used: bool")
    .Attr("cell: string")
    .Attr("instant: bool")
    .Attr("T: {float, double}")
    .Attr("P: int >= 0")
    .Attr("m: int >= 1")
    .Attr("NR: int >= 0")
    .Attr("NM: int >= 0")
    .KERAS_RTRL_SHAPES(Adjoint)
    .Doc("Adjoint scan: gradients of the pre-activations, of the unit parameters by stream, the start's adjoint, and the steps in it.");

REGISTER_OP("KerasRtrlTrace")
    .Input("state: T")
    .Input("x: T")
    .Input("saved: T")
    .Input("states: m * T")
    .Input("traces: NS * T")
    .Input("unit_traces: Nr * T")
    .Input("rho: P * T")
    .Input("reset: NR * bool")
    .Input("mask: NM * bool")
    .Output("new_traces: T")
    .Output("new_unit_traces: T")
    .Attr("cell: string")
    .Attr("T: {float, double}")
    .Attr("P: int >= 0")
    .Attr("m: int >= 1")
    .Attr("NS: int >= 0")
    .Attr("Nr: int >= 0")
    .Attr("NR: int >= 0")
    .Attr("NM: int >= 0")
    .KERAS_RTRL_SHAPES(Trace)
    .Doc("Chunk trace step: the traces after T steps from those before, zeros where none are given.");

REGISTER_OP("KerasRtrlContract")
    .Input("start: T")
    .Input("traces: T")
    .Input("unit_traces: T")
    .Input("d_kernel: T")
    .Input("d_rho: T")
    .Output("sum_d_kernel: T")
    .Output("sum_d_rho: T")
    .Attr("cell: string")
    .Attr("T: {float, double}")
    .KERAS_RTRL_SHAPES(Contract)
    .Doc("Adds what lies before the chunk to the gradients inside it, and sums d_rho over streams.");

REGISTER_OP("KerasRtrlStreamingForward")
    .Input("state: T")
    .Input("x: T")
    .Input("kernel: T")
    .Input("rho: P * T")
    .Input("reset: NR * bool")
    .Output("new_state: T")
    .Output("local: T")
    .Attr("cell: string")
    .Attr("T: {float, double}")
    .Attr("P: int >= 0")
    .Attr("NR: int >= 0")
    .KERAS_RTRL_SHAPES(StreamingForward)
    .Doc("One step of the recurrence, and its local derivatives.");

REGISTER_OP("KerasRtrlStreamingUpdate")
    .Input("traces: resource")
    .Input("unit_traces: resource")
    .Input("x: T")
    .Input("local: T")
    .Input("cotangents: T")
    .Output("d_kernel: T")
    .Output("d_rho: T")
    .Attr("cell: string")
    .Attr("T: {float, double}")
    .SetIsStateful()
    .KERAS_RTRL_SHAPES(StreamingUpdate)
    .Doc("Advances two trace variables in place by one step, and contracts them with the cotangents of K losses.");

}  // namespace
}  // namespace keras_rtrl
