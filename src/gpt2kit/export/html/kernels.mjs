// The products of matrices and vectors that take nearly all of the time, in WebAssembly with 128-bit vectors, and the
// same in JavaScript for browsers without it. Matrices are stored by rows. Addresses, strides and sizes are in bytes.

// A module is assembled here from functions that return the bytes of an expression, operands first. So the source of
// the page has no binary code. The numbers are those of the WebAssembly specification.
const I32 = 0x7f;
const F32 = 0x7d;
const V128 = 0x7b;

const op =
  (...code) =>
  (...operands) => [...operands.flat(), ...code];
const i32 = { add: op(0x6a), sub: op(0x6b), lessThan: op(0x49), constant: (value) => [0x41, ...signed(value)] };
const f32 = { add: op(0x92), store: (offset, address, value) => [...address, ...value, 0x38, 2, ...unsigned(offset)] };
const v128 = { load: (address) => [...address, 0xfd, 0, 0, 0], zero: [0xfd, 12, ...new Array(16).fill(0)] };
const f32x4 = {
  add: op(0xfd, 0xe4, 1),
  multiply: op(0xfd, 0xe6, 1),
  fromIntegers: op(0xfd, 0xfa, 1),
  lane: (lane, vector) => [...vector, 0xfd, 0x1f, lane],
};
const i32x4 = { add: op(0xfd, 0xae, 1), dot: op(0xfd, 0xba, 1) };
const i16x8 = { low: op(0xfd, 0x87, 1), high: op(0xfd, 0x88, 1) };
const get = (local) => [0x20, local];
const set = (local, value) => [...value, 0x21, local];
// Repeat the body while the condition after it is true.
const repeat = (body, condition) => [0x03, 0x40, ...body.flat(), ...condition, 0x0d, 0, 0x0b];

// Four rows at a time use each part of the vector that is loaded.
const ROWS = 4;

// multiplyFloats(matrix, vector, result, rows, size, stride): `rows` is a multiple of 4, `size`, the bytes of the
// vector, a multiple of 16.
function floatFunction() {
  const [matrix, vector, result, rows, size, stride] = [0, 1, 2, 3, 4, 5];
  const [column, part] = [6, 7];
  const row = [8, 9, 10, 11];
  const sum = [12, 13, 14, 15];
  const step = row.map((_, n) => {
    const product = f32x4.multiply(get(part), v128.load(i32.add(get(row[n]), get(column))));
    return set(sum[n], f32x4.add(get(sum[n]), product));
  });
  const body = [
    ...startRows(matrix, row, stride),
    ...sum.map((local) => set(local, v128.zero)),
    set(column, i32.constant(0)),
    repeat(
      [
        set(part, v128.load(i32.add(get(vector), get(column)))),
        ...step,
        set(column, i32.add(get(column), i32.constant(16))),
      ],
      i32.lessThan(get(column), get(size)),
    ),
    ...sum.map((local, n) => f32.store(4 * n, get(result), addLanes(get(local)))),
    ...nextRows(matrix, result, rows, row, stride),
  ];
  return { parameters: 6, locals: [I32, V128, I32, I32, I32, I32, V128, V128, V128, V128], body: [repeatRows(body, rows)] };
}

// multiplyIntegers(matrix, vector, result, rows, size): the matrix is int8, the vector int16, the result float32.
// `rows` is a multiple of 4, `size`, the bytes of a row, a multiple of 16.
function integerFunction() {
  const [matrix, vector, result, rows, size] = [0, 1, 2, 3, 4];
  const [column, low, high, weights] = [5, 6, 7, 8];
  const row = [9, 10, 11, 12];
  const sum = [13, 14, 15, 16];
  const step = row.map((_, n) => [
    ...set(weights, v128.load(i32.add(get(row[n]), get(column)))),
    ...set(sum[n], i32x4.add(get(sum[n]), i32x4.dot(get(low), i16x8.low(get(weights))))),
    ...set(sum[n], i32x4.add(get(sum[n]), i32x4.dot(get(high), i16x8.high(get(weights))))),
  ]);
  const half = (offset) => v128.load(i32.add(i32.add(get(vector), i32.add(get(column), get(column))), i32.constant(offset)));
  const body = [
    ...startRows(matrix, row, size),
    ...sum.map((local) => set(local, v128.zero)),
    set(column, i32.constant(0)),
    repeat(
      [set(low, half(0)), set(high, half(16)), ...step, set(column, i32.add(get(column), i32.constant(16)))],
      i32.lessThan(get(column), get(size)),
    ),
    ...sum.map((local, n) => f32.store(4 * n, get(result), addLanes(f32x4.fromIntegers(get(local))))),
    ...nextRows(matrix, result, rows, row, size),
  ];
  return {
    parameters: 5,
    locals: [I32, V128, V128, V128, I32, I32, I32, I32, V128, V128, V128, V128],
    body: [repeatRows(body, rows)],
  };
}

function startRows(matrix, row, stride) {
  return row.map((local, n) => set(local, n ? i32.add(get(row[n - 1]), get(stride)) : get(matrix)));
}

function nextRows(matrix, result, rows, row, stride) {
  return [
    set(matrix, i32.add(get(row[ROWS - 1]), get(stride))),
    set(result, i32.add(get(result), i32.constant(4 * ROWS))),
    set(rows, i32.sub(get(rows), i32.constant(ROWS))),
  ];
}

function repeatRows(body, rows) {
  return repeat(body, get(rows));
}

function addLanes(vector) {
  const lane = (n) => f32x4.lane(n, vector);
  return f32.add(f32.add(lane(0), lane(1)), f32.add(lane(2), lane(3)));
}

/** Return the bytes of the WebAssembly module. It imports its memory and exports the two functions. */
export function assemble() {
  const functions = { multiplyFloats: floatFunction(), multiplyIntegers: integerFunction() };
  const all = Object.values(functions);
  const types = all.map(({ parameters }) => [0x60, ...list(new Array(parameters).fill([I32])), 0]);
  const code = all.map(({ locals, body }) => {
    const content = [...list(locals.map((type) => [1, type])), ...body.flat(), 0x0b];
    return [...unsigned(content.length), ...content];
  });
  const names = Object.keys(functions).map((name, n) => [...string(name), 0, n]);
  const memory = [...string("page"), ...string("memory"), 2, 0, 0];
  const sections = { 1: types, 2: [memory], 3: all.map((_, n) => [n]), 7: names, 10: code };
  const bytes = [0, 0x61, 0x73, 0x6d, 1, 0, 0, 0];
  for (const [id, items] of Object.entries(sections)) {
    const content = list(items);
    bytes.push(Number(id), ...unsigned(content.length), ...content);
  }
  return new Uint8Array(bytes);
}

function list(items) {
  return [...unsigned(items.length), ...items.flat()];
}

function string(text) {
  return list([...text].map((letter) => [letter.charCodeAt(0)]));
}

function unsigned(value) {
  return value < 128 ? [value] : [(value & 127) | 128, ...unsigned(value >>> 7)];
}

function signed(value) {
  return value >= -64 && value < 64 ? [value & 127] : [(value & 127) | 128, ...signed(value >> 7)];
}

/** Memory that grows, for WebAssembly or for JavaScript alone. */
export class Memory {
  /** `engine` is "webassembly", "javascript", or "auto": WebAssembly if the browser has it. */
  constructor(engine = "auto") {
    this.module = engine === "javascript" ? null : compile();
    if (engine === "webassembly" && !this.module) throw new Error("no WebAssembly");
    this.pages = this.module && new WebAssembly.Memory({ initial: 0 });
    this.plain = new ArrayBuffer(0);
    this.used = 0;
  }

  get engine() {
    return this.module ? "webassembly" : "javascript";
  }

  get buffer() {
    return this.pages ? this.pages.buffer : this.plain;
  }

  /** Reserve bytes and return their address, a multiple of 16. They are zero. Views of the buffer become invalid. */
  reserve(bytes) {
    const address = this.used;
    this.used += Math.ceil(bytes / 16) * 16;
    const missing = this.used - this.buffer.byteLength;
    if (missing > 0 && this.pages) {
      this.pages.grow(Math.ceil(missing / 65536));
    } else if (missing > 0) {
      const larger = new Uint8Array(this.used);
      larger.set(new Uint8Array(this.plain));
      this.plain = larger.buffer;
    }
    return address;
  }

  /** Return the functions for the buffer as it is now. */
  kernels() {
    if (this.module) return new WebAssembly.Instance(this.module, { page: { memory: this.pages } }).exports;
    return javascriptKernels(this.buffer);
  }
}

function compile() {
  try {
    return new WebAssembly.Module(assemble());
  } catch {
    return null; // an old browser, or one that is set to refuse WebAssembly
  }
}

/** Return the functions of the module, written in JavaScript. */
export function javascriptKernels(buffer) {
  const floats = new Float32Array(buffer);
  const bytes = new Int8Array(buffer);
  const shorts = new Int16Array(buffer, 0, Math.floor(buffer.byteLength / 2));
  return {
    multiplyFloats(matrix, vector, result, rows, size, stride) {
      for (let row = 0; row < rows; row++) {
        let [at, other, a, b, c, d] = [(matrix + row * stride) / 4, vector / 4, 0, 0, 0, 0];
        for (const end = at + size / 4; at < end; at += 4, other += 4) {
          a += floats[at] * floats[other];
          b += floats[at + 1] * floats[other + 1];
          c += floats[at + 2] * floats[other + 2];
          d += floats[at + 3] * floats[other + 3];
        }
        floats[result / 4 + row] = a + b + (c + d);
      }
    },
    multiplyIntegers(matrix, vector, result, rows, size) {
      for (let row = 0; row < rows; row++) {
        let [at, other, a, b, c, d] = [matrix + row * size, vector / 2, 0, 0, 0, 0];
        for (const end = at + size; at < end; at += 4, other += 4) {
          a = (a + bytes[at] * shorts[other]) | 0;
          b = (b + bytes[at + 1] * shorts[other + 1]) | 0;
          c = (c + bytes[at + 2] * shorts[other + 2]) | 0;
          d = (d + bytes[at + 3] * shorts[other + 3]) | 0;
        }
        floats[result / 4 + row] = a + b + (c + d);
      }
    },
  };
}
