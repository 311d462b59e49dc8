"""`fastinfer serve`: models behind HTTP, in the protocols of OpenAI and of text-embeddings-inference.

command.py    the command: its options, the server and its workers
settings.py   what the command was asked for, and the limits
app.py        create(): the application of Starlette
endpoint.py   what every endpoint has: reading, limits, cancelling, headers, metrics, logs
requests.py   the types of requests and answers, from which the checks and the OpenAPI page are made
openai.py     /v1/embeddings, /v1/models
tei.py        the endpoints of text-embeddings-inference
tasks.py      /fill_mask, /tag, /answer
served.py     a model by its name: the limits of its requests, and its Batcher
reading.py    texts of requests that arrive together become tokens
errors.py     errors as HTTP answers; metrics.py, logs.py, openapi.py: what their names say
page.py       the page at /, with paths down the trees
"""
