import OpenAI from 'openai';

const client = ({ url, key, script }) =>
  new OpenAI({ baseURL: `${url}/v1`, apiKey: key, defaultHeaders: { 'X-Script': script } });

const chat = {
  model: 'gpt-4o-mini',
  max_completion_tokens: 400,
  messages: [{ role: 'user', content: 'What do I see?' }],
};

const tools = [
  {
    type: 'function',
    function: {
      name: 'weather',
      parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
    },
  },
];

export const calls = {
  async call(c) {
    const got = await client(c).chat.completions.create(chat);
    return { text: got.choices[0].message.content, total: got.usage.total_tokens };
  },
  async stream(c) {
    let text = '';
    let asked = false;
    for await (const chunk of await client(c).chat.completions.create({ ...chat, stream: true })) {
      asked ||= chunk.choices.length === 0 || chunk.usage != null;
      text += chunk.choices[0]?.delta?.content ?? '';
    }
    return { text, unasked: asked };
  },
  async tools(c) {
    const got = await client(c).chat.completions.create({ ...chat, tools });
    const { name, arguments: args } = got.choices[0].message.tool_calls[0].function;
    return { tool: name, city: JSON.parse(args).city };
  },
  async response(c) {
    const stream = client(c).responses.stream({ model: 'gpt-5-mini', input: 'What do I see?' });
    const got = await stream.finalResponse();
    return { text: got.output_text, total: got.usage.total_tokens };
  },
};

export const read = (err) => ({
  typed: err instanceof OpenAI.APIError,
  status: err.status,
  type: err.type,
  code: err.code,
  message: err.message,
  id: err.requestID,
});
