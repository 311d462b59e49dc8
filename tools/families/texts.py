"""The texts that both sides get, and the sentences that vocabularies are trained on."""

from __future__ import annotations

import string

TEXTS = [
    "The cat sleeps on the mat.",
    "Ada Lovelace lived in London, near the river Thames.",
    "Crème brûlée in Besançon; Łódź, Zürich and Málaga",
    "北京 is the capital of 中国。",
    "Москва is Moscow, Αθήνα is Athens",
    "ALL CAPITALS and mIxEd CaSe",
    "Prices rose by 5% to $3.50 on 12/14/1999 (at 10:30).",
    "cats 🦊 and dogs 🐶",
    "a  b\tc\nd",
    "?",
    "Each long sentence goes on and on, past every limit of a model with few positions, " * 4,
]
SPECIAL = "the <pad> sat [PAD] on <unk> [UNK] mats"  # special tokens, written out
QUERY = "Where did Ada Lovelace live?"
DOCUMENTS = ["Ada lived in London.", "The cat sleeps.", "Prices rose by 5%.", "北京", TEXTS[-1]]
PAIRS = [(QUERY, document) for document in DOCUMENTS[:4]] + [("What rose?", TEXTS[6])]
MASKED = ["Paris is the {} of France.", "{} lived in London.", "the {} sat on the {}"]
HYPOTHESES = ["cooking", "travel", "money"]

CORPUS = [
    *TEXTS,
    *DOCUMENTS,
    QUERY,
    " ".join(string.punctuation),
    "Angela Merkel visited Berlin, Paris and Rome!",
    "The capital of France is Paris, the capital of Italy is Rome.",
    "Where did the people live? They lived in a small house near the lake.",
    "He said: it is cold today, and left the room without a word.",
    "Shares fell on Monday after the bank raised its rate again.",
    "Roast the carrots with butter, then boil the rice for twelve minutes.",
    "A dog barks, a bird sings, and the children play in the garden.",
    "Represent this sentence for searching relevant passages: query passage document search_query",
    "Instruct: Given a web search query, retrieve relevant passages that answer the query",
    "title: none | text: task: search result | query:",
    "This example is about cooking, travel or money.",
    "Wo wohnt sie? Sie wohnt in einem kleinen Haus am See.",
    "Il a dit que la ville est belle et que la mer est loin.",
]
