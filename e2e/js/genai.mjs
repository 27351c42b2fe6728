import { ApiError, GoogleGenAI, Type } from '@google/genai';

const models = ({ url, key, script }) =>
  new GoogleGenAI({ apiKey: key, httpOptions: { baseUrl: url, headers: { 'X-Script': script } } }).models;

const content = { model: 'gemini-2.5-flash', contents: 'What do I see?', config: { maxOutputTokens: 400 } };

const tools = [
  {
    functionDeclarations: [
      {
        name: 'weather',
        parameters: { type: Type.OBJECT, properties: { city: { type: Type.STRING } }, required: ['city'] },
      },
    ],
  },
];

export const calls = {
  async call(c) {
    const got = await models(c).generateContent(content);
    return { text: got.text, total: got.usageMetadata.totalTokenCount };
  },
  async stream(c) {
    let text = '';
    let last;
    for await (const chunk of await models(c).generateContentStream(content)) {
      text += chunk.text ?? '';
      last = chunk;
    }
    return { text, total: last.usageMetadata.totalTokenCount };
  },
  async tools(c) {
    const got = await models(c).generateContent({ ...content, config: { ...content.config, tools } });
    const { name, args } = got.functionCalls[0];
    return { tool: name, city: args.city };
  },
  async embeddings(c) {
    const got = await models(c).embedContent({ model: 'gemini-embedding-2', contents: ['a gate', 'a ledger'] });
    return { total: got.embeddings.length };
  },
  async count(c) {
    const got = await models(c).countTokens({ model: content.model, contents: content.contents });
    return { total: got.totalTokens };
  },
};

// The SDK's error has the answer's body as its message.
export const read = (err) => {
  let body = {};
  try {
    body = JSON.parse(err.message).error;
  } catch {
    // not an answer's body
  }
  const detail = (name) => body.details?.find((d) => d['@type'].endsWith(`.${name}`));
  return {
    typed: err instanceof ApiError,
    status: err.status,
    type: body.status,
    code: detail('ErrorInfo')?.reason ?? detail('QuotaFailure')?.violations[0].quotaId,
    message: body.message,
  };
};
