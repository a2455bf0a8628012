// Continues prompts greedily with llama.cpp, which splits them into tokens itself, through node-llama-cpp:
//
//     node tests/proofs/llama_client.mjs NODE_MODULES '{"file": "model.gguf", "prompts": ["Once"], "tokens": 20}'
//
// Prints a JSON list of the new text of each prompt.

import {createRequire} from "node:module";
import {resolve} from "node:path";
import {pathToFileURL} from "node:url";

const [folder, json] = process.argv.slice(2);
const {file, prompts, tokens} = JSON.parse(json);
const path = createRequire(resolve(folder, "_")).resolve("node-llama-cpp");
const {getLlama, LlamaCompletion} = await import(pathToFileURL(path));

const llama = await getLlama({gpu: false, build: "never", maxThreads: 2, logLevel: "error"});
const model = await llama.loadModel({modelPath: file});
const texts = [];
for (const prompt of prompts) {
    const context = await model.createContext({
        experimentalKvCacheKeyType: "F32",
        experimentalKvCacheValueType: "F32",
    });
    const completion = new LlamaCompletion({contextSequence: context.getSequence()});
    texts.push(await completion.generateCompletion(prompt, {temperature: 0, maxTokens: tokens}));
    await context.dispose();
}
console.log(JSON.stringify(texts));
await llama.dispose();
