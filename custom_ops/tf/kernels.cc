// The ops' kernels: arguments checked and gathered, outputs allocated or forwarded, and one call of the C interface.
#include <functional>
#include <utility>

#include "absl/container/inlined_vector.h"
#include "arguments.h"
#include "device.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/resource_mgr.h"
#include "tensorflow/core/framework/resource_var.h"

namespace keras_rtrl {
namespace {

using tensorflow::DataTypeToEnum;
using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;

// What all ops have in common. A subclass computes in Run, which may leave an error in `ctx`.
template <class Device, class T>
class CellOp : public OpKernel {
 public:
  CellOp(OpKernelConstruction* ctx, absl::Span<const Argument> inputs, absl::Span<const Argument> outputs)
      : OpKernel(ctx), inputs_(inputs), outputs_(outputs) {
    std::string name;
    OP_REQUIRES_OK(ctx, ctx->GetAttr("cell", &name));
    OP_REQUIRES_OK(ctx, FindCell(name, &cell_));
    const Dims dims(*keras_rtrl_cell_info(cell_));
    for (const Argument& input : inputs_) {
      input_ranges_.emplace_back();
      auto& [start, stop] = input_ranges_.back();
      OP_REQUIRES_OK(ctx, InputRange(input.name, &start, &stop));
      OP_REQUIRES_OK(ctx, dims.MatchCount(input, stop - start));
    }
    for (const Argument& output : outputs_) {
      output_ranges_.emplace_back();
      auto& [start, stop] = output_ranges_.back();
      OP_REQUIRES_OK(ctx, OutputRange(output.name, &start, &stop));
      OP_REQUIRES_OK(ctx, dims.MatchCount(output, stop - start));
    }
  }

  void Compute(OpKernelContext* ctx) final {
    Dims dims(*keras_rtrl_cell_info(cell_));
    for (size_t i = 0; i < inputs_.size(); ++i) {
      if (inputs_[i].count == Count::kResource) continue;
      for (int k = input_ranges_[i].first; k < input_ranges_[i].second; ++k) {
        OP_REQUIRES_OK(ctx, dims.Match(inputs_[i], ctx->input(k).shape().dim_sizes()));
      }
    }
    OP_REQUIRES(ctx, dims['T'] != 0, absl::InvalidArgumentError("time must be at least 1, got 0."));
    keras_rtrl_chunk<void> chunk = {};
    chunk.cell = cell_;
    chunk.dtype = DataTypeToEnum<T>::value == tensorflow::DT_FLOAT ? KERAS_RTRL_FLOAT32 : KERAS_RTRL_FLOAT64;
    chunk.batch = dims['B'];
    chunk.time = dims['T'] == Dims::kUnknown ? 1 : dims['T'];
    chunk.inputs = dims['D'] == Dims::kUnknown ? 0 : dims['D'];
    chunk.units = dims['N'];
    In(ctx, "rho", chunk.rho);
    In(ctx, "reset", &chunk.reset);
    In(ctx, "mask", &chunk.mask);
    Device device(ctx);
    Run(ctx, &device, chunk, &dims);
    if (ctx->status().ok()) OP_REQUIRES_OK(ctx, device.status());
  }

 protected:
  virtual void Run(OpKernelContext* ctx, Device* device, const keras_rtrl_chunk<void>& chunk, Dims* dims) = 0;

  // Points `to`, and if the input has several tensors what follows, to its tensors; not if the op has no such input.
  template <class P>
  void In(OpKernelContext* ctx, absl::string_view name, const P** to) const {
    if (const int i = Find(inputs_, name); i >= 0) {
      const auto& [start, stop] = input_ranges_[i];
      for (int k = start; k < stop; ++k) *to++ = static_cast<const P*>(ctx->input(k).data());
    }
  }

  // The same for the new tensors of an output; the buffer of input `forward` is reused if nothing else needs it. May
  // leave an error in `ctx`.
  template <class P>
  void Out(OpKernelContext* ctx, const Dims& dims, absl::string_view name, P** to,
           absl::string_view forward = "") const {
    const int i = Find(outputs_, name), from = Find(inputs_, forward);
    TensorShape shape;
    for (const char* dim = outputs_[i].dims; *dim; ++dim) shape.AddDim(dims[*dim]);
    absl::InlinedVector<int, 1> candidates;
    if (from >= 0 && input_ranges_[from].first < input_ranges_[from].second) {
      candidates.push_back(input_ranges_[from].first);
    }
    for (int k = output_ranges_[i].first; k < output_ranges_[i].second; ++k) {
      Tensor* tensor = nullptr;
      OP_REQUIRES_OK(ctx, ctx->forward_input_or_allocate_output(candidates, k, shape, &tensor));
      *to++ = static_cast<P*>(tensor->data());
    }
  }

 private:
  static int Find(absl::Span<const Argument> arguments, absl::string_view name) {
    for (size_t i = 0; i < arguments.size(); ++i) {
      if (name == arguments[i].name) return i;
    }
    return -1;
  }

  const absl::Span<const Argument> inputs_, outputs_;
  absl::InlinedVector<std::pair<int, int>, 9> input_ranges_, output_ranges_;
  int cell_ = -1;
};

template <class Device, class T>
class ForwardOp : public CellOp<Device, T> {
 public:
  explicit ForwardOp(OpKernelConstruction* ctx) : CellOp<Device, T>(ctx, kForwardInputs, kForwardOutputs) {}

 protected:
  void Run(OpKernelContext* ctx, Device* device, const keras_rtrl_chunk<void>& chunk, Dims* dims) override {
    keras_rtrl_forward_arguments<void> arguments = {};
    this->In(ctx, "state", &arguments.state0);
    this->In(ctx, "u", &arguments.u);
    arguments.chunk = chunk;
    this->Out(ctx, *dims, "saved", &arguments.saved, "u");
    this->Out(ctx, *dims, "states", arguments.states);
    if (!ctx->status().ok()) return;
    device->Forward(arguments);
  }
};

template <class Device, class T>
class AdjointOp : public CellOp<Device, T> {
 public:
  explicit AdjointOp(OpKernelConstruction* ctx) : CellOp<Device, T>(ctx, kAdjointInputs, kAdjointOutputs) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("instant", &instant_));
  }

 protected:
  void Run(OpKernelContext* ctx, Device* device, const keras_rtrl_chunk<void>& chunk, Dims* dims) override {
    keras_rtrl_adjoint_arguments<void> arguments = {};
    this->In(ctx, "state", &arguments.state0);
    this->In(ctx, "saved", &arguments.saved);
    this->In(ctx, "states", arguments.states);
    this->In(ctx, "cotangents", arguments.cotangents);
    arguments.chunk = chunk;
    arguments.instant = instant_;
    this->Out(ctx, *dims, "du", &arguments.du, "saved");
    this->Out(ctx, *dims, "d_rho", &arguments.d_rho);
    this->Out(ctx, *dims, "start", &arguments.start);
    this->Out(ctx, *dims, "used", &arguments.used);
    if (!ctx->status().ok()) return;
    device->Adjoint(arguments);
  }

 private:
  bool instant_;
};

template <class Device, class T>
class TraceOp : public CellOp<Device, T> {
 public:
  explicit TraceOp(OpKernelConstruction* ctx) : CellOp<Device, T>(ctx, kTraceInputs, kTraceOutputs) {}

 protected:
  void Run(OpKernelContext* ctx, Device* device, const keras_rtrl_chunk<void>& chunk, Dims* dims) override {
    keras_rtrl_trace_arguments<void> arguments = {};
    this->In(ctx, "state", &arguments.state0);
    this->In(ctx, "x", &arguments.x);
    this->In(ctx, "saved", &arguments.saved);
    this->In(ctx, "states", arguments.states);
    this->In(ctx, "traces", &arguments.S0);
    this->In(ctx, "unit_traces", &arguments.r0);
    arguments.chunk = chunk;
    this->Out(ctx, *dims, "new_traces", &arguments.S, "traces");
    this->Out(ctx, *dims, "new_unit_traces", &arguments.r, "unit_traces");
    if (!ctx->status().ok()) return;
    device->Trace(arguments);
  }
};

template <class Device, class T>
class ContractOp : public CellOp<Device, T> {
 public:
  explicit ContractOp(OpKernelConstruction* ctx) : CellOp<Device, T>(ctx, kContractInputs, kContractOutputs) {}

 protected:
  void Run(OpKernelContext* ctx, Device* device, const keras_rtrl_chunk<void>& chunk, Dims* dims) override {
    keras_rtrl_contract_arguments<void> arguments = {};
    this->In(ctx, "start", &arguments.start);
    this->In(ctx, "traces", &arguments.S0);
    this->In(ctx, "unit_traces", &arguments.r0);
    const T *d_kernel, *d_rho;
    this->In(ctx, "d_kernel", &d_kernel);
    this->In(ctx, "d_rho", &d_rho);
    arguments.chunk = chunk;
    this->Out(ctx, *dims, "sum_d_kernel", &arguments.d_kernel, "d_kernel");
    this->Out(ctx, *dims, "sum_d_rho", &arguments.d_rho);
    if (!ctx->status().ok()) return;
    if (arguments.d_kernel != d_kernel) {
      device->Copy(arguments.d_kernel, d_kernel, (*dims)['D'] * (*dims)['W'] * sizeof(T));
    }
    device->SumStreams(d_rho, chunk.batch, (*dims)['P'] * chunk.units, static_cast<T*>(arguments.d_rho));
    device->Contract(arguments);
  }
};

template <class Device, class T>
class StreamingForwardOp : public CellOp<Device, T> {
 public:
  explicit StreamingForwardOp(OpKernelConstruction* ctx)
      : CellOp<Device, T>(ctx, kStreamingForwardInputs, kStreamingForwardOutputs) {}

 protected:
  void Run(OpKernelContext* ctx, Device* device, const keras_rtrl_chunk<void>& chunk, Dims* dims) override {
    keras_rtrl_streaming_forward_arguments<void> arguments = {};
    this->In(ctx, "state", &arguments.state0);
    this->In(ctx, "x", &arguments.x);
    this->In(ctx, "kernel", &arguments.kernel);
    arguments.chunk = chunk;
    this->Out(ctx, *dims, "new_state", &arguments.state, "state");
    this->Out(ctx, *dims, "local", &arguments.local);
    if (!ctx->status().ok()) return;
    device->StreamingForward(arguments);
  }
};

template <class Device, class T>
class StreamingUpdateOp : public CellOp<Device, T> {
 public:
  explicit StreamingUpdateOp(OpKernelConstruction* ctx)
      : CellOp<Device, T>(ctx, kStreamingUpdateInputs, kStreamingUpdateOutputs) {}

 protected:
  void Run(OpKernelContext* ctx, Device* device, const keras_rtrl_chunk<void>& chunk, Dims* dims) override {
    tensorflow::core::RefCountPtr<tensorflow::Var> S, r;
    OP_REQUIRES_OK(ctx, tensorflow::LookupResource(ctx, tensorflow::HandleFromInput(ctx, 0), &S));
    OP_REQUIRES_OK(ctx, tensorflow::LookupResource(ctx, tensorflow::HandleFromInput(ctx, 1), &r));
    OP_REQUIRES(ctx, S.get() != r.get(),
                absl::InvalidArgumentError("traces and unit_traces must be two variables, got one."));
    // In order of their addresses, as TensorFlow's own ops lock several variables.
    auto *first = S->mu(), *second = r->mu();
    if (std::less<>()(second, first)) std::swap(first, second);
    tensorflow::mutex_lock lock_first(*first), lock_second(*second);
    keras_rtrl_streaming_update_arguments<void> arguments = {};
    this->In(ctx, "x", &arguments.x);
    this->In(ctx, "local", &arguments.local);
    this->In(ctx, "cotangents", &arguments.cotangents);
    arguments.K = (*dims)['K'];
    arguments.chunk = chunk;
    this->Out(ctx, *dims, "d_kernel", &arguments.d_kernel);
    this->Out(ctx, *dims, "d_rho", &arguments.d_rho);
    if (!ctx->status().ok()) return;
    OP_REQUIRES_OK(ctx, Check(kStreamingUpdateInputs[0], *S, dims));
    OP_REQUIRES_OK(ctx, Check(kStreamingUpdateInputs[1], *r, dims));
    OP_REQUIRES_OK(ctx, Own(ctx, device, S.get()));
    OP_REQUIRES_OK(ctx, Own(ctx, device, r.get()));
    arguments.S = S->tensor()->data();
    arguments.r = r->tensor()->data();
    device->StreamingUpdate(arguments);
  }

 private:
  static absl::Status Check(const Argument& argument, tensorflow::Var& variable, Dims* dims) {
    const Tensor& tensor = *variable.tensor();
    if (!variable.is_initialized) {
      return absl::FailedPreconditionError(absl::StrCat(argument.name, ": the variable is not initialised."));
    }
    if (tensor.dtype() != DataTypeToEnum<T>::value) {
      return absl::InvalidArgumentError(absl::StrCat(
          argument.name, " must be a variable of dtype ", tensorflow::DataTypeString(DataTypeToEnum<T>::value),
          ", got ", tensorflow::DataTypeString(tensor.dtype()), "."));
    }
    return dims->Match(argument, tensor.shape().dim_sizes());
  }

  // Copies a variable's buffer if something else holds it too, such as a value read before.
  static absl::Status Own(OpKernelContext* ctx, Device* device, tensorflow::Var* variable) {
    Tensor* tensor = variable->tensor();
    if (tensor->NumElements() == 0 || tensor->RefCountIsOne()) return absl::OkStatus();
    Tensor copy;
    TF_RETURN_IF_ERROR(ctx->allocate_temp(tensor->dtype(), tensor->shape(), &copy));
    device->Copy(copy.data(), tensor->data(), tensor->TotalBytes());
    *tensor = std::move(copy);
    return absl::OkStatus();
  }
};

// A variable's handle is on the host, on whichever device its buffer is.
#define KERAS_RTRL_REGISTER(OP, DEVICE, T, ...)                                                    \
  REGISTER_KERNEL_BUILDER(                                                                         \
      Name("KerasRtrl" #OP).Device(tensorflow::DEVICE_##DEVICE).TypeConstraint<T>("T")__VA_ARGS__, \
      OP##Op<KERAS_RTRL_##DEVICE, T>)
#define KERAS_RTRL_REGISTER_ALL(DEVICE, T)          \
  KERAS_RTRL_REGISTER(Forward, DEVICE, T);          \
  KERAS_RTRL_REGISTER(Adjoint, DEVICE, T);          \
  KERAS_RTRL_REGISTER(Trace, DEVICE, T);            \
  KERAS_RTRL_REGISTER(Contract, DEVICE, T);         \
  KERAS_RTRL_REGISTER(StreamingForward, DEVICE, T); \
  KERAS_RTRL_REGISTER(StreamingUpdate, DEVICE, T, .HostMemory("traces").HostMemory("unit_traces"))

#define KERAS_RTRL_CPU Cpu
KERAS_RTRL_REGISTER_ALL(CPU, float);
KERAS_RTRL_REGISTER_ALL(CPU, double);
#ifdef KERAS_RTRL_CUDA
#define KERAS_RTRL_GPU Gpu
KERAS_RTRL_REGISTER_ALL(GPU, float);
KERAS_RTRL_REGISTER_ALL(GPU, double);
#endif

}  // namespace
}  // namespace keras_rtrl
