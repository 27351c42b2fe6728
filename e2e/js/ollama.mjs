import { Ollama } from 'ollama';

const client = ({ url, key, script }) =>
  new Ollama({ host: url, headers: { Authorization: `Bearer ${key}`, 'X-Script': script } });

const chat = {
  model: 'llama3.2',
  options: { num_predict: 400 },
  messages: [{ role: 'user', content: 'What do I see?' }],
};

const tools = [
  {
    type: 'function',
    function: {
      name: 'weather',
      description: 'tells the weather',
      parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
    },
  },
];

export const calls = {
  async call(c) {
    const got = await client(c).chat(chat);
    return { text: got.message.content, total: got.eval_count };
  },
  async stream(c) {
    let text = '';
    let last;
    for await (const part of await client(c).chat({ ...chat, stream: true })) {
      text += part.message.content;
      last = part;
    }
    return { text, total: last.eval_count };
  },
  async tools(c) {
    const got = await client(c).chat({ ...chat, tools });
    const { name, arguments: args } = got.message.tool_calls[0].function;
    return { tool: name, city: args.city };
  },
};

// The SDK does not export the class of its errors.
export const read = (err) => ({
  typed: err.name === 'ResponseError',
  status: err.status_code,
  message: err.error,
});
