// Generates greedily with llama.cpp, through node-llama-cpp, for bench/generate.py:
//
//     echo 1 | node bench/llama_generate.mjs NODE_MODULES \
//         '{"file": "model.gguf", "cache": "F32", "prompt": [0, 5], "tokens": 64, "threads": 2}'
//
// Each line of the input is a number of texts to generate together. It is answered with a line of JSON: the new ids of
// each text, and the seconds to the first and to the last token.

import {createRequire} from "node:module";
import {resolve} from "node:path";
import {createInterface} from "node:readline";
import {pathToFileURL} from "node:url";

const [folder, json] = process.argv.slice(2);
const {file, cache, prompt, tokens, threads} = JSON.parse(json);
const path = createRequire(resolve(folder, "_")).resolve("node-llama-cpp");
const {getLlama} = await import(pathToFileURL(path));

const llama = await getLlama({gpu: false, build: "never", maxThreads: threads, logLevel: "error"});
const model = await llama.loadModel({modelPath: file});
const contexts = new Map();

async function sequences(batch) {
    if (!contexts.has(batch)) {
        const context = await model.createContext({
            contextSize: prompt.length + tokens,
            sequences: batch,
            threads,
            experimentalKvCacheKeyType: cache,
            experimentalKvCacheValueType: cache,
        });
        contexts.set(batch, Array.from({length: batch}, () => context.getSequence()));
    }
    return contexts.get(batch);
}

for await (const line of createInterface({input: process.stdin})) {
    const batch = await sequences(Number(line));
    await Promise.all(batch.map((sequence) => sequence.clearHistory()));
    let first = 0;
    const begin = performance.now();
    const rows = await Promise.all(batch.map(async (sequence) => {
        const ids = [];
        for await (const id of sequence.evaluate(prompt, {temperature: 0, yieldEogToken: true})) {
            first ||= performance.now() - begin;
            if (ids.push(id) === tokens)
                break;
        }
        return ids;
    }));
    console.log(JSON.stringify({rows, first: first / 1e3, total: (performance.now() - begin) / 1e3}));
}
await llama.dispose();
