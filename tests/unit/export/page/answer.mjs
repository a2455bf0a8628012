// Answer requests to a model in Node.js, with the modules of the page: node answer.mjs MODULES REQUESTS.json
import { readFileSync } from "node:fs";

const [, , modules, input] = process.argv;
const { ModelFile } = await import(`${modules}/model.mjs`);
const { openModel } = await import(`${modules}/worker.mjs`);
const { uniform } = await import(`${modules}/draws.mjs`);

const { model, engine, requests } = JSON.parse(readFileSync(input, "utf8"));
let generator = null;
if (model) {
  const content = readFileSync(model);
  const file = new ModelFile(content.length, engine ?? "auto");
  file.bytes.set(content);
  generator = openModel(file);
}

const answers = {
  encode: (texts) => texts.map((text) => generator.tokenizer.encode(text)),
  decode: (rows) => rows.map((ids) => generator.tokenizer.decode(ids)),
  bytes: () => generator.tokenizer.bytes.map((bytes) => Buffer.from(bytes, "latin1").toString("hex")),
  logits: (ids) => generator.logits(ids).map((row) => [...row]),
  score: (text) => generator.score(text),
  uniform: (keys) => keys.map((key) => uniform(...key)),
  generate: (prompt, options) => {
    const chunks = [...generator.generate(prompt, options)];
    return { text: chunks.map(({ text }) => text).join(""), chunks };
  },
};
process.stdout.write(JSON.stringify(requests.map(([name, ...values]) => answers[name](...values))));
