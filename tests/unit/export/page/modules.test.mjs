// Tests of the page's modules, with Node.js's test runner: node --test tests/unit/export/page/modules.test.mjs
import assert from "node:assert/strict";
import test from "node:test";

const modules = new URL("../../../../src/gpt2kit/export/html/", import.meta.url);
const load = (name) => import(new URL(`${name}.mjs`, modules));
const { Memory, assemble, javascriptKernels } = await load("kernels");
const { LABELS, LANGUAGES, chooseLanguage, translateLabel } = await load("languages");
const { fill, visible } = await load("page");
const { keepMinP, keepTopK, keepTopP, mostLikely, penalizeRepetition, probabilities, sample, sampleAt } = await load("sampling");
const { translatePattern } = await load("tokenizer");
const { decodeStart } = await load("verse");
const { decodeBase64 } = await load("worker");

/** Return numbers from -1 to 1 that are the same each time. */
function numbers(count) {
  let state = 1;
  return Float32Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 31 - 1;
  });
}

const kept = (logits) => [...logits.keys()].filter((i) => logits[i] > -Infinity);

test("the assembled module is valid WebAssembly", () => {
  assert.ok(WebAssembly.validate(assemble()));
});

for (const engine of ["webassembly", "javascript"]) {
  test(`matrices of floats are multiplied in ${engine}`, () => {
    const [rows, columns] = [8, 12];
    const memory = new Memory(engine);
    const [matrix, vector, result] = [4 * rows * columns, 4 * columns, 4 * rows].map((bytes) => memory.reserve(bytes));
    const weights = new Float32Array(memory.buffer, matrix, rows * columns);
    weights.set(numbers(rows * columns));
    const values = new Float32Array(memory.buffer, vector, columns);
    values.set(numbers(columns).reverse());
    memory.kernels().multiplyFloats(matrix, vector, result, rows, 4 * columns, 4 * columns);
    new Float32Array(memory.buffer, result, rows).forEach((sum, row) => {
      const expected = values.reduce((total, value, i) => total + value * weights[row * columns + i], 0);
      assert.ok(Math.abs(sum - expected) < 1e-5, `${sum} is not ${expected}`);
    });
  });

  test(`matrices of integers are multiplied exactly in ${engine}`, () => {
    const [rows, columns] = [4, 48];
    const memory = new Memory(engine);
    const [matrix, vector, result] = [rows * columns, 2 * columns, 4 * rows].map((bytes) => memory.reserve(bytes));
    const weights = new Int8Array(memory.buffer, matrix, rows * columns);
    weights.set(numbers(rows * columns).map((value) => Math.round(127 * value)));
    const values = new Int16Array(memory.buffer, vector, columns);
    values.set(numbers(columns).map((value) => Math.round(1000 * value)));
    memory.kernels().multiplyIntegers(matrix, vector, result, rows, columns);
    const expected = [...new Array(rows).keys()].map((row) => {
      return values.reduce((total, value, i) => total + value * weights[row * columns + i], 0);
    });
    assert.deepEqual([...new Float32Array(memory.buffer, result, rows)], expected);
  });
}

test("memory keeps its content when it grows", () => {
  for (const engine of ["webassembly", "javascript"]) {
    const memory = new Memory(engine);
    const first = memory.reserve(5);
    new Uint8Array(memory.buffer)[first] = 7;
    const second = memory.reserve(200000);
    assert.equal(second % 16, 0);
    assert.equal(new Uint8Array(memory.buffer)[first], 7);
    assert.ok(memory.buffer.byteLength >= second + 200000);
  }
  assert.equal(typeof javascriptKernels(new ArrayBuffer(16)).multiplyFloats, "function");
});

test("filters keep the tokens that generate.py keeps", () => {
  const logits = () => Float32Array.from([0.1, 0.4, 0.2, 0.3], Math.log);
  const after = (filter, value) => {
    const filtered = logits();
    filter(filtered, value);
    return kept(filtered);
  };
  assert.deepEqual(after(keepTopK, 2), [1, 3]);
  assert.deepEqual(after(keepTopK, 9), [0, 1, 2, 3]);
  assert.deepEqual(after(keepTopP, 0.39), [1]);
  assert.deepEqual(after(keepTopP, 0.5), [1, 3]);
  assert.deepEqual(after(keepTopP, 0.95), [0, 1, 2, 3]);
  assert.deepEqual(after(keepMinP, 0.6), [1, 3]);
  const equal = new Float32Array(5);
  keepTopK(equal, 2);
  assert.equal(kept(equal).length, 5, "equally likely tokens stay together");
});

test("a draw is at a point of the cumulative probabilities", () => {
  const logits = Float32Array.from([0.25, 0, 0.5, 0.25], Math.log);
  assert.deepEqual([0, 0.2, 0.3, 0.7, 0.8, 0.999].map((point) => sampleAt(logits, point)), [0, 0, 2, 2, 3, 3]);
  const greedy = { temperature: 0, topK: 0, topP: 1, minP: 0, seed: 1 };
  assert.equal(sample(logits, greedy, 0, 0), 2);
});

test("the repetition penalty lowers logits of either sign", () => {
  const logits = Float32Array.from([2, -2, 2]);
  penalizeRepetition(logits, [0, 1, 1], 2);
  assert.deepEqual([...logits], [1, -4, 2]);
});

test("the most likely tokens come first", () => {
  const best = mostLikely(probabilities(Float32Array.from([0, 3, 1, 2])), 3).map(({ token }) => token);
  assert.deepEqual(best, [1, 3, 2]);
});

test("expressions of Oniguruma mean the same in JavaScript", () => {
  const matches = (pattern, text) => text.match(new RegExp(translatePattern(pattern), "gu")) ?? [];
  assert.deepEqual(matches("\\s+", "a\u0085b\ufeffc \u3000"), ["\u0085", " \u3000"]);
  assert.deepEqual(matches("[^\\s\\p{L}]+", "a 12b"), ["12"]);
  assert.deepEqual(matches("(?i:'ll|k)", "'LL 'll \u212a K"), ["'LL", "'ll", "\u212a", "K"]);
  assert.deepEqual(matches("^ +| +$", "  a \n b"), ["  ", " ", " "]);
  const places = (pattern, text) => [...text.matchAll(new RegExp(translatePattern(pattern), "gu"))].map(({ index }) => index);
  assert.deepEqual(places("$", "a🙂b\n🙂"), [4, 7]);
  assert.deepEqual(places("^", "a🙂b\n🙂\n"), [0, 5]);
  assert.deepEqual(matches("\\<(?=a\\/)", "<a/<b"), ["<"]);
});

test("the start of a text is decoded up to an open character", () => {
  assert.deepEqual(decodeStart("a\xe7\x99"), ["a", "\xe7\x99"]);
  assert.deepEqual(decodeStart("\xe7\x99\xbd"), ["白", ""]);
  assert.equal(decodeStart("\xff"), null);
});

test("base64 is decoded in parts, with and without the method of new browsers", () => {
  const bytes = new Uint8Array(8);
  assert.equal(decodeBase64("AQID", bytes, 0), 3);
  assert.equal(decodeBase64("BAU=", bytes, 3), 5);
  assert.deepEqual([...bytes], [1, 2, 3, 4, 5, 0, 0, 0]);
  const calls = [];
  const modern = { setFromBase64: true, subarray: (at) => ({ setFromBase64: (text) => calls.push([at, text]) && { written: 3 } }) };
  assert.equal(decodeBase64("AQID", modern, 2), 5);
  assert.deepEqual(calls, [[2, "AQID"]]);
});

test("every language has every text, with the same values", () => {
  const places = (text) => [...text.matchAll(/\{\w+\}/g)].map(String).sort();
  for (const [language, texts] of Object.entries(LANGUAGES)) {
    assert.deepEqual(Object.keys(texts), Object.keys(LANGUAGES.en), language);
    for (const [name, text] of Object.entries(texts)) {
      assert.deepEqual(places(text), places(LANGUAGES.en[name]), `${language}: ${name}`);
    }
  }
  assert.equal(fill(LANGUAGES.en.failed, { message: "x" }), "An error occurred: x");
});

test("labels of the table are translated, and unknown ones stay", () => {
  for (const [language, labels] of Object.entries(LABELS)) {
    assert.deepEqual(Object.keys(labels), Object.keys(LABELS.zh), language);
    assert.equal(translateLabel("parameters", language), labels.parameters);
    assert.match(translateLabel("bits per byte of the test text, 1,234 bytes", language), /^[^a-z{]*1,234 ?[^a-z{]*$/);
    assert.equal(translateLabel("height", language), "height");
  }
  assert.deepEqual(Object.keys(LABELS), Object.keys(LANGUAGES).filter((language) => language !== "en"));
  assert.equal(translateLabel("parameters", "en"), "parameters");
});

test("the language is the first that the page speaks", () => {
  assert.equal(chooseLanguage(["fr-FR", "zh-TW", "en"]), "zh");
  assert.equal(chooseLanguage(["JA"]), "ja");
  assert.equal(chooseLanguage(["toString", "xx"]), "en");
  assert.equal(chooseLanguage([]), "en");
});

test("hidden characters are visible", () => {
  assert.equal(visible("a \u202e\n\t\0"), "a␣<U+202E>↵→<U+0000>");
});
