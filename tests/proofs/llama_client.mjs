// Runs llama.cpp through node-llama-cpp:
//
//     node tests/proofs/llama_client.mjs NODE_MODULES '{"file": "model.gguf", "prompts": ["Once"], "tokens": 20}'
//
// Prints an object with the answer to each part of the request:
//     prompts: texts, which llama.cpp splits into tokens itself -> the greedy continuation of each
//     starts: lists of ids -> the ids of the greedy continuation of each
//     strings: a JSON file with a list of texts -> the ids of each, without special tokens

import {readFileSync} from "node:fs";
import {createRequire} from "node:module";
import {resolve} from "node:path";
import {pathToFileURL} from "node:url";

const [folder, json] = process.argv.slice(2);
const {file, prompts = [], starts = [], strings, tokens} = JSON.parse(json);
const path = createRequire(resolve(folder, "_")).resolve("node-llama-cpp");
const {getLlama, LlamaCompletion} = await import(pathToFileURL(path));

const llama = await getLlama({gpu: false, build: "never", maxThreads: 2, logLevel: "error"});
const model = await llama.loadModel({modelPath: file});

async function withSequence(use) {
    const context = await model.createContext({
        experimentalKvCacheKeyType: "F32",
        experimentalKvCacheValueType: "F32",
    });
    const result = await use(context.getSequence());
    await context.dispose();
    return result;
}

async function continueText(sequence, prompt) {
    const completion = new LlamaCompletion({contextSequence: sequence});
    return completion.generateCompletion(prompt, {temperature: 0, maxTokens: tokens});
}

async function continueIds(sequence, start) {
    const ids = [];
    for await (const id of sequence.evaluate(start, {temperature: 0, yieldEogToken: true})) {
        if (ids.push(id) === tokens)
            break;
    }
    return ids;
}

const result = {prompts: [], starts: [], strings: []};
for (const prompt of prompts)
    result.prompts.push(await withSequence((sequence) => continueText(sequence, prompt)));
for (const start of starts)
    result.starts.push(await withSequence((sequence) => continueIds(sequence, start)));
if (strings)
    result.strings = JSON.parse(readFileSync(strings, "utf8")).map((text) => model.tokenize(text, false));
console.log(JSON.stringify(result));
await llama.dispose();
