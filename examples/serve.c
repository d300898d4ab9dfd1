/* Calls a signature of an exported model step after step, by TensorFlow's C API alone.

     serve FOLDER STEPS SIGNATURE NAME=TENSOR...

   Each NAME is an output and TENSOR what `saved_model_cli show --dir FOLDER --all` prints for it. Prints the first one's
   first number at each step, and at the end the median time of a step. An output that is an input too, as states are,
   goes into the next step. Sensors say 1 or -1, targets are what they said two steps ago, weights are 1, and the first
   step is a reset. All sizes must be fixed: export with batch_size and steps. docs/export.md has the compiler's words. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tensorflow/c/c_api.h"

enum { MOST = 64, SENSORS = 4096 };
static TF_Status *status;

static void need(int good, const char *what, const char *why) {
  if (good && TF_GetCode(status) == TF_OK) return;
  fprintf(stderr, "%s: %s\n", what, good ? TF_Message(status) : why);
  exit(1);
}

static TF_Tensor *zeros(TF_Graph *graph, TF_Output input) {
  int64_t sizes[8];
  const int rank = TF_GraphGetTensorNumDims(graph, input, status);
  need(rank >= 0 && rank <= 8, TF_OperationName(input.oper), "its axes are not fixed");
  TF_GraphGetTensorShape(graph, input, sizes, rank, status);
  size_t bytes = TF_DataTypeSize(TF_OperationOutputType(input));
  for (int i = 0; i < rank; bytes *= sizes[i++])
    need(sizes[i] > 0, TF_OperationName(input.oper), "its sizes are not fixed");
  TF_Tensor *tensor = TF_AllocateTensor(TF_OperationOutputType(input), sizes, rank, bytes);
  memset(TF_TensorData(tensor), 0, bytes);
  return tensor;
}

static void fill(TF_Tensor *tensor, const char *name, int step) {
  static float said[3][SENSORS]; /* by the sensors at this step and the two before */
  static unsigned random = 1;
  float *values = TF_TensorData(tensor), *new = said[step % 3], *before = said[(step + 1) % 3];
  const size_t bytes = TF_TensorByteSize(tensor), size = TF_TensorType(tensor) == TF_FLOAT ? bytes / sizeof *values : 0;
  need(size <= SENSORS, name, "it is too large");
  if (!size) memset(values, step == 0, bytes);
  for (size_t i = 0; i < size; i++) {
    if (!strcmp(name, "sample_weight")) values[i] = 1;
    else if (!strcmp(name, "targets")) values[i] = before[i];
    else values[i] = new[i] = (random = random * 1664525u + 1013904223u) >> 31 ? 1 : -1;
  }
}

static int order(const void *a, const void *b) { return *(double *)a < *(double *)b ? -1 : 1; }

int main(int count, char **words) {
  status = TF_NewStatus();
  need(count > 4 && count < MOST && atoi(words[2]) > 0, words[0], "FOLDER STEPS SIGNATURE NAME=TENSOR...");
  const int steps = atoi(words[2]), fetched = count - 4, prefix = strlen(words[3]) + 1;
  const char *tag = "serve", *name; /* an input is called SIGNATURE_NAME */
  TF_Graph *graph = TF_NewGraph();
  TF_Session *session = TF_LoadSessionFromSavedModel(TF_NewSessionOptions(), 0, words[1], &tag, 1, graph, 0, status);
  need(1, words[1], 0);
  TF_Output inputs[MOST], outputs[MOST];
  TF_Tensor *given[MOST], *got[MOST], **old;
  int taken = 0, goes_to[MOST], is_state[MOST] = {0};
  TF_Operation *op;
  for (size_t at = 0; (op = TF_GraphNextOperation(graph, &at)) && taken < MOST;) {
    name = TF_OperationName(op);
    if (strcmp(TF_OperationOpType(op), "Placeholder") || strncmp(name, words[3], prefix - 1)) continue;
    inputs[taken] = (TF_Output){op, 0};
    given[taken] = zeros(graph, inputs[taken]), taken++;
  }
  for (int i = 0; i < fetched; i++) {
    char *tensor = strchr(words[4 + i], '='), *index = strchr(words[4 + i], ':');
    need(tensor && index, words[4 + i], "must be NAME=OPERATION:INDEX");
    *tensor = *index = 0;
    outputs[i] = (TF_Output){TF_GraphOperationByName(graph, tensor + 1), atoi(index + 1)};
    need(outputs[i].oper != 0, tensor + 1, "no such operation");
    goes_to[i] = -1;
    for (int j = 0; j < taken; j++)
      if (!strcmp(TF_OperationName(inputs[j].oper) + prefix, words[4 + i])) is_state[goes_to[i] = j] = 1;
  }
  double *took = malloc(steps * sizeof *took);
  struct timespec before, after;
  for (int step = 0; step < steps; step++) {
    for (int j = 0; j < taken; j++)
      if (!is_state[j]) fill(given[j], TF_OperationName(inputs[j].oper) + prefix, step);
    clock_gettime(CLOCK_MONOTONIC, &before);
    TF_SessionRun(session, 0, inputs, given, taken, outputs, got, fetched, 0, 0, 0, status);
    clock_gettime(CLOCK_MONOTONIC, &after);
    took[step] = (after.tv_sec - before.tv_sec) * 1e6 + (after.tv_nsec - before.tv_nsec) * 1e-3;
    need(1, words[3], 0);
    printf("%.9g\n", *(float *)TF_TensorData(got[0]));
    for (int i = 0; i < fetched; i++) {
      TF_DeleteTensor(*(old = goes_to[i] < 0 ? &got[i] : &given[goes_to[i]]));
      *old = got[i];
    }
  }
  qsort(took, steps, sizeof *took, order);
  fprintf(stderr, "%.1f microseconds a step\n", took[steps / 2]);
}
