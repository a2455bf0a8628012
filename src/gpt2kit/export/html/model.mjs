// GPT-2's forward pass for one sequence, with a key-value cache. Knows nothing about text.
import { Memory } from "./kernels.mjs";

const ACTIVATIONS = {
  gelu_new: (x) => 0.5 * x * (1 + Math.tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))),
  gelu: (x) => 0.5 * x * (1 + erf(x * Math.SQRT1_2)),
  relu: (x) => Math.max(x, 0),
  silu: (x) => x / (1 + Math.exp(-x)),
};

const roundUp = (value, multiple) => Math.ceil(value / multiple) * multiple;

/** The header and the tensors of a model in one file, see export/html.py. */
export class ModelFile {
  constructor(bytes, engine = "auto") {
    this.memory = new Memory(engine);
    this.address = this.memory.reserve(bytes);
    this.bytes = new Uint8Array(this.memory.buffer, this.address, bytes);
  }

  /** Read the header; all bytes must be there. */
  header() {
    const length = new DataView(this.bytes.buffer, this.address).getUint32(0, true);
    return JSON.parse(new TextDecoder().decode(this.bytes.subarray(4, 4 + length)));
  }
}

/** GPT-2 over the tensors of a file. */
export class GPT2 {
  constructor(file, header) {
    const { memory } = file;
    this.shape = header.shape;
    const { n_embd: width, n_head: heads, n_layer: layers, n_positions: context } = this.shape;
    const inner = this.shape.n_inner ?? 4 * width;
    this.headSize = width / heads;
    this.headStride = roundUp(this.headSize, 4);
    this.room = roundUp(context, 4);
    this.length = 0;
    this.activation = ACTIVATIONS[this.shape.activation_function];

    // Everything is reserved before there are views of the memory, which is replaced when it grows.
    const reserve = (floats) => memory.reserve(4 * roundUp(floats, 16));
    const tensors = Object.entries(header.tensors).map(([name, tensor]) => [name, this._place(file, tensor)]);
    const stream = reserve(width);
    const normed = reserve(width);
    const queryKeyValue = reserve(3 * width + 4);
    const attended = reserve(width + 4);
    const hidden = reserve(inner);
    const scores = reserve(this.room);
    const added = reserve(width);
    const logits = reserve(this.shape.vocab_size);
    const rounded = memory.reserve(2 * roundUp(Math.max(width, inner), 16));
    const cacheSize = heads * this.room * this.headStride;
    const keys = Array.from({ length: layers }, () => reserve(cacheSize));
    const values = Array.from({ length: layers }, () => reserve(cacheSize));

    const { buffer } = memory;
    const view = (address, floats) => new Float32Array(buffer, address, floats);
    this.kernels = memory.kernels();
    this.tensors = Object.fromEntries(tensors.map(([name, tensor]) => [name, this._open(buffer, tensor)]));
    this.stream = view(stream, width);
    this.normed = view(normed, width);
    this.queryKeyValue = view(queryKeyValue, 3 * width);
    this.attended = view(attended, width);
    this.hidden = view(hidden, inner);
    this.scores = view(scores, this.room);
    this.added = view(added, width);
    this.logits = view(logits, this.shape.vocab_size);
    this.rounded = new Int16Array(buffer, rounded, roundUp(Math.max(width, inner), 16));
    this.keys = keys.map((address) => view(address, cacheSize)); // (heads, room, headStride)
    this.values = values.map((address) => view(address, cacheSize)); // (heads, headStride, room)
  }

  /** Return a tensor with addresses in memory. float16 becomes float32. */
  _place(file, tensor) {
    const placed = { ...tensor, at: file.address + tensor.at };
    if (tensor.scales !== undefined) placed.scales = file.address + tensor.scales;
    if (tensor.type !== "float16") return placed;
    const count = roundUp(tensor.rows, 4) * tensor.stride;
    const at = file.memory.reserve(4 * count);
    const halves = new Uint16Array(file.memory.buffer, placed.at, count);
    const floats = new Float32Array(file.memory.buffer, at, count);
    const values = Float32Array.from({ length: 1 << 16 }, (_, half) => fromHalf(half));
    for (let i = 0; i < count; i++) floats[i] = values[halves[i]];
    return { ...placed, type: "float32", at };
  }

  _open(buffer, tensor) {
    const opened = { ...tensor };
    const count = tensor.rows * (tensor.stride ?? 1);
    if (tensor.type === "int8") {
      opened.data = new Int8Array(buffer, tensor.at, count);
      opened.scale = new Float32Array(buffer, tensor.scales, tensor.rows);
    } else {
      opened.data = new Float32Array(buffer, tensor.at, count);
    }
    return opened;
  }

  /** Forget all tokens. */
  reset() {
    this.length = 0;
  }

  /** Read the next token. */
  read(id) {
    const { n_layer: layers, n_embd: width } = this.shape;
    const { stream, normed, added, hidden, tensors } = this;
    this._addRow(tensors.wte, id, stream, true);
    this._addRow(tensors.wpe, this.length, stream, false);
    for (let layer = 0; layer < layers; layer++) {
      const name = `h.${layer}`;
      this._norm(stream, `${name}.ln_1`);
      this._linear(normed, `${name}.attn.c_attn`, this.queryKeyValue);
      this._attend(layer);
      this._linear(this.attended, `${name}.attn.c_proj`, added);
      for (let i = 0; i < width; i++) stream[i] += added[i];
      this._norm(stream, `${name}.ln_2`);
      this._linear(normed, `${name}.mlp.c_fc`, hidden);
      for (let i = 0; i < hidden.length; i++) hidden[i] = this.activation(hidden[i]);
      this._linear(hidden, `${name}.mlp.c_proj`, added);
      for (let i = 0; i < width; i++) stream[i] += added[i];
    }
    this.length += 1;
  }

  /** Return the logits of the token after the last one. The next call overwrites them. */
  nextLogits() {
    this._norm(this.stream, "ln_f");
    this._multiply(this.tensors.wte, this.normed, this.logits);
    return this.logits;
  }

  _addRow(matrix, row, vector, isFirst) {
    const start = row * matrix.stride;
    const scale = matrix.scale ? matrix.scale[row] : 1;
    for (let i = 0; i < vector.length; i++) vector[i] = (isFirst ? 0 : vector[i]) + scale * matrix.data[start + i];
  }

  _norm(vector, name) {
    const weight = this.tensors[`${name}.weight`].data;
    const bias = this.tensors[`${name}.bias`].data;
    const size = vector.length;
    let mean = 0;
    for (let i = 0; i < size; i++) mean += vector[i];
    mean /= size;
    let variance = 0;
    for (let i = 0; i < size; i++) variance += (vector[i] - mean) ** 2;
    const factor = 1 / Math.sqrt(variance / size + this.shape.layer_norm_epsilon);
    for (let i = 0; i < size; i++) this.normed[i] = (vector[i] - mean) * factor * weight[i] + bias[i];
  }

  _linear(vector, name, result) {
    const bias = this.tensors[`${name}.bias`].data;
    this._multiply(this.tensors[`${name}.weight`], vector, result);
    for (let i = 0; i < result.length; i++) result[i] += bias[i];
  }

  _multiply(matrix, vector, result) {
    const rows = roundUp(matrix.rows, 4); // the file has the missing rows
    if (matrix.type === "float32") {
      const size = 4 * matrix.stride;
      this.kernels.multiplyFloats(matrix.at, vector.byteOffset, result.byteOffset, rows, size, size);
      return;
    }
    const step = this._round(vector, matrix.stride);
    this.kernels.multiplyIntegers(matrix.at, this.rounded.byteOffset, result.byteOffset, rows, matrix.stride);
    for (let i = 0; i < result.length; i++) result[i] *= step * matrix.scale[i];
  }

  /** Round a vector to integers for products with int8, as large as the sums in 32 bits allow; return their unit. */
  _round(vector, stride) {
    const { rounded } = this;
    let largest = 0;
    for (let i = 0; i < vector.length; i++) largest = Math.max(largest, Math.abs(vector[i]));
    // Each of the four sums of a row has a quarter of the products, with weights up to 127.
    const limit = Math.min(32767, Math.floor((2 ** 31 - 1) / (127 * Math.ceil(stride / 4))));
    const step = largest / limit || 1;
    for (let i = 0; i < vector.length; i++) rounded[i] = Math.round(vector[i] / step);
    rounded.fill(0, vector.length, stride);
    return step;
  }

  /** Add the new token's keys and values to the cache, and compute what it attends to. */
  _attend(layer) {
    const { n_embd: width, n_head: heads } = this.shape;
    const { headSize, headStride, room, queryKeyValue, scores, attended, kernels } = this;
    const [keys, values] = [this.keys[layer], this.values[layer]];
    const position = this.length;
    const count = position + 1;
    const rows = roundUp(count, 4);
    const factor = 1 / Math.sqrt(headSize);
    for (let head = 0; head < heads; head++) {
      const [keyStart, valueStart] = [head * room * headStride, head * headStride * room];
      for (let i = 0; i < headSize; i++) {
        keys[keyStart + position * headStride + i] = queryKeyValue[width + head * headSize + i];
        values[valueStart + i * room + position] = queryKeyValue[2 * width + head * headSize + i];
      }
      const query = queryKeyValue.byteOffset + 4 * head * headSize;
      const keyAddress = keys.byteOffset + 4 * keyStart;
      kernels.multiplyFloats(keyAddress, query, scores.byteOffset, rows, 4 * headStride, 4 * headStride);
      softmax(scores, count, factor);
      scores.fill(0, count, rows);
      const result = attended.byteOffset + 4 * head * headSize;
      kernels.multiplyFloats(values.byteOffset + 4 * valueStart, scores.byteOffset, result, headStride, 4 * rows, 4 * room);
    }
  }
}

/** Replace the first numbers by their softmax, after multiplying them by a factor. */
function softmax(numbers, count, factor) {
  let largest = -Infinity;
  for (let i = 0; i < count; i++) largest = Math.max(largest, numbers[i]);
  let sum = 0;
  for (let i = 0; i < count; i++) sum += numbers[i] = Math.exp(factor * (numbers[i] - largest));
  for (let i = 0; i < count; i++) numbers[i] /= sum;
}

function fromHalf(half) {
  const [exponent, fraction] = [(half >> 10) & 31, half & 1023];
  const sign = half & 0x8000 ? -1 : 1;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
}

/** The error function to about 1e-7, by formula 7.1.26 of Abramowitz and Stegun. */
function erf(x) {
  const t = 1 / (1 + 0.3275911 * Math.abs(x));
  const series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
  return Math.sign(x) * (1 - series * Math.exp(-x * x));
}

/** Reads a growing sequence of ids. One that outgrows the context is reduced to its newest half, as in decoder.py. */
export class Reader {
  constructor(gpt2) {
    this.gpt2 = gpt2;
    this.context = gpt2.shape.n_positions;
    this.start = -1;
    this.hasOutgrownContext = false;
  }

  /** Return the logits of the token after these ids: those of the last call and one more, or new ones. */
  logits(ids) {
    const { context, gpt2 } = this;
    let first = this.start + gpt2.length;
    if (this.start < 0) first = this.start = Math.max(ids.length - context, 0);
    if (ids.length - this.start > context) first = this.start = ids.length - Math.max(Math.floor(context / 2), 1);
    this.hasOutgrownContext ||= this.start > 0;
    if (first === this.start) gpt2.reset();
    for (const id of ids.slice(first)) gpt2.read(id);
    return gpt2.nextLogits();
  }
}
