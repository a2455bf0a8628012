// The worker of the page: receives the model in parts, then answers requests. The page stays responsive meanwhile.
import { Generator, Refusal } from "./generator.mjs";
import { GPT2, ModelFile } from "./model.mjs";
import { Tokenizer, fromBytes } from "./tokenizer.mjs";

/** Decode base64 into `bytes`, from `offset` on, and return the offset of its end. */
export function decodeBase64(text, bytes, offset) {
  if (bytes.setFromBase64) return offset + bytes.subarray(offset).setFromBase64(text).written;
  const letters = atob(text);
  for (let i = 0; i < letters.length; i++) bytes[offset + i] = letters.charCodeAt(i);
  return offset + letters.length;
}

/** Return a model in a file, ready to generate text. */
export function openModel(file) {
  const header = file.header();
  return new Generator(new GPT2(file, header), new Tokenizer(header.tokenizer, header.end), header.can_heal);
}

/** Return a token as text; a part of a character as its bytes in hexadecimal. */
export function showToken(tokenizer, token) {
  const bytes = tokenizer.bytes[token] ?? "";
  const text = fromBytes(bytes);
  if (!text.includes("\ufffd")) return text;
  return Array.from(bytes, (byte) => byte.charCodeAt(0).toString(16).toUpperCase().padStart(2, "0")).join(" ");
}

/** Answer the messages of a page; `scope` is the worker. */
export function serve(scope) {
  const channel = new MessageChannel();
  let [file, received, generator, isStopped] = [null, 0, null, false];

  /** Let messages arrive, such as one to stop. */
  const pause = () =>
    new Promise((resolve) => {
      channel.port1.onmessage = resolve;
      channel.port2.postMessage(null);
    });

  const generate = async (id, prompt, options) => {
    isStopped = false;
    const show = (token) => showToken(generator.tokenizer, token);
    const start = performance.now();
    let [count, end] = [0, ""];
    for (const chunk of generator.generate(prompt, options)) {
      const { token, text, probability, alternatives = [] } = chunk;
      if (token !== undefined && chunk.end === "") count++;
      const shown = alternatives.map((item) => ({ text: show(item.token), probability: item.probability }));
      const label = token === undefined ? "" : show(token);
      scope.postMessage({ type: "token", id, text, token: label, probability, alternatives: shown });
      end = chunk.end;
      await pause();
      if (isStopped) break;
    }
    return { tokens: count, seconds: (performance.now() - start) / 1000, end: isStopped ? "stopped" : end };
  };

  const requests = {
    generate,
    facts: () => ({ engine: file.memory.engine }),
    encode: (_, texts) => texts.map((text) => generator.tokenizer.encode(text)),
    logits: (_, ids) => generator.logits(ids).map((row) => [...row]),
    score: (_, text) => generator.score(text),
  };

  const handle = async ({ type, ...message }) => {
    if (type === "open") {
      file = new ModelFile(message.bytes, message.engine);
    } else if (type === "block") {
      try {
        received = decodeBase64(message.text, file.bytes, received);
      } catch {
        throw new Refusal("incomplete");
      }
      scope.postMessage({ type: "progress", fraction: received / file.bytes.length });
    } else if (type === "end") {
      if (received !== file.bytes.length) throw new Refusal("incomplete");
      generator = openModel(file);
      scope.postMessage({ type: "ready" });
    } else if (type === "stop") {
      isStopped = true;
    } else {
      const result = await requests[message.name](message.id, ...message.values);
      scope.postMessage({ type: "result", id: message.id, result });
    }
  };

  scope.onmessage = async ({ data }) => {
    try {
      await handle(data);
    } catch (error) {
      const refusal = error instanceof Refusal ? error.message : "";
      scope.postMessage({ type: "error", id: data.id, refusal, message: String(error.message ?? error) });
    }
  };
}
