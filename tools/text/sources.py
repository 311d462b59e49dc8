"""The sources of training text, each defined once: where it comes from, under which terms, and how it is read.

Left out, because their terms forbid the training of a model that anybody may use: MS MARCO, Quora's questions, Flickr8k's and Flickr30k's
captions, ANLI, EmpatheticDialogues, DailyDialog, AG's news, UCI's drug reviews, NPS Chat (non-commercial or research only). Because no
terms allow it: Reuters-21578, PubMed's abstracts, TREC's topics, O*NET 18.1, tweets. Because models are tested on them: CLINC150,
banking77, Disfl-QA, XQuAD and SQuAD, B. Liu's product reviews, SNLI, MNLI, SciTail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import clones

from .readers import Reader, articles, column, entries, field, markdown, novel, passage, pattern, posts, python, sayings

TYPED = ("dialogues", "queries")  # kinds of which half of the texts lose their punctuation, because people often type without


@dataclass(frozen=True)
class Source:
    """Texts of one kind in a public repository on GitHub, at the commit that was read, and their terms.

    paths  glob patterns of its files, separated by spaces, in the clone
    share  the part of its texts that is taken, chosen by a checksum, so that no source outweighs the rest
    get    for text that is not in a repository and not installed: the command that puts it into the folder of the clones
    """

    kind: str
    repository: str
    commit: str
    terms: str
    paths: str
    read: Reader
    share: float = 1.0
    get: str = ""

    @property
    def folder(self) -> str:
        """The name of its clone."""
        return clones.folder_of(self.repository)

    @property
    def clone(self) -> str:
        """The command that puts it into the current folder; "" for what is installed."""
        return clones.command(self.repository, self.commit) if self.commit else self.get


TOPICS = ("castorini/anserini-tools", "5b819c1a45c8")
NLTK = ("nltk/nltk_data", "5db857e6f7df")
ARXIV = (
    "staeiou/arxiv_archive",
    "f043eb1d71da",
    "arXiv's metadata: CC0",
    " ".join(
        f"processed_data/20200101/per_category/{some}.tsv.xz" for some in ("cs.[C-I]*", "econ.*", "q-*", "physics.[eghms]*", "stat.AP")
    ),
)
ENGLISH_BOOKS = "books/*-langs.md books/*-subjects.md books/*-en.md courses/*-en.md"
OWN = "each package's own, free"
STACK_EXCHANGE = "Stack Exchange: CC BY-SA"

SOURCES: Sequence[Source] = (
    Source("encyclopedias", "ag-gipp/wikiextractor", "6b6a412dda77", "Wikipedia: CC BY-SA 3.0", "text-excellent/AA/wiki_*", articles, 0.14),
    Source("encyclopedias", "Vibhas-hs-edu/WikiTasks", "52b1f163137b", "Wikipedia: CC BY-SA 3.0", "text/AA/wiki_*", articles, 0.2),
    Source("novels", "COST-ELTeC/ELTeC-eng", "3db3b6738a83", "public domain; markup CC BY 4.0", "level1/*.xml", novel, 0.1),
    Source(
        "dialogues",
        "google-research-datasets/dstc8-schema-guided-dialogue",
        "e852981ae349",
        "CC BY-SA 4.0",
        "train/*.json dev/*.json test/*.json",
        sayings,
        0.5,
    ),
    Source("dialogues", "google-research-datasets/Taskmaster", "d92cb6af3005", "CC BY 4.0", "TM-4-2024/data/*.json", sayings),
    Source("dialogues", "PolyAI-LDN/task-specific-datasets", "57ec275d8078", "CC BY 4.0", "span_extraction/restaurant8k/*.json", sayings),
    Source("dialogues", "alexa/Topical-Chat", "7c939229cbcf", "CDLA-Sharing 1.0", "conversations/*.json", field("message")),
    Source("dialogues", "Yale-LILY/QMSum", "83d7768c1f2b", "MIT", "data/ALL/jsonl/*.jsonl", field("content", "query", "answer"), 0.5),
    Source("queries", "google-research-datasets/query-wellformedness", "fb69c2141619", "CC BY-SA 4.0", "*.tsv", sayings),
    Source("queries", "google-research-datasets/natural-questions", "fb26a3073b1f", "CC BY-SA 3.0", "nq_open/*.jsonl", sayings),
    Source("queries", *TOPICS, "Natural Questions: CC BY-SA 3.0", "topics/topics.nq.dev.txt topics/topics.nq.test.txt", column(0)),
    Source("queries", *TOPICS, "TriviaQA: Apache-2.0", "topics/topics.dpr.trivia.*.txt", column(0)),
    Source("queries", *TOPICS, "HotpotQA: CC BY-SA 4.0", "topics/topics.beir-v1.0.0-hotpotqa.test.tsv.gz", column(1)),
    Source("queries", *TOPICS, "DBpedia-Entity: CC BY-SA 3.0", "topics/topics.beir-v1.0.0-dbpedia-entity.test.tsv.gz", column(1)),
    Source(
        "queries", *TOPICS, "TyDi QA: Apache-2.0", "topics/topics.miracl-v1.0-en-*.tsv topics/topics.mrtydi-v1.1-en.*.txt.gz", column(1)
    ),
    Source("queries", "brmson/dataset-factoid-webquestions", "668890853388", "CC BY 4.0", "main/*.json", sayings),
    Source(
        "queries",
        "askplatypus/wikidata-simplequestions",
        "df69267f1db4",
        "CC BY 3.0",
        "annotated_wd_data_*.txt SimpleQuestions_v2/annotated*.txt",
        column(3),
        0.6,
    ),
    Source("queries", "ppasupat/WikiTableQuestions", "7d455a5a707b", "CC BY-SA 4.0", "data/*.examples", pattern(r'\(utterance "(.*?)"\)')),
    Source("queries", "wenhuchen/HybridQA", "db22fda8c595", "MIT", "released_data/*.json", field("question")),
    Source("queries", "iesl/protoqa-data", "c6c5696cd0cc", "CC BY 4.0", "data/*/*.jsonl data/*.jsonl", field("original")),
    Source("queries", "openai/grade-school-math", "3101c7d50724", "MIT", "grade_school_math/data/t*.jsonl", field("question")),
    Source("queries", "xliuhw/NLU-Evaluation-Data", "f6071b496b17", "CC BY 4.0", "CrossValidation/out4LuisReal/**/*.json", sayings),
    Source("queries", "sonos/nlu-benchmark", "b86ac7f15778", "CC0", "2017-06-custom-intent-engines/**/*.json", sayings, 0.5),
    Source(
        "queries",
        "microsoft/botframework-solutions",
        "08ad18f11250",
        "MIT",
        "samples/csharp/**/en-us/*.lu samples/csharp/**/en-us/*.qna",
        sayings,
    ),
    Source("queries", "wayfair/WANDS", "3b74dcf4ba29", "MIT", "dataset/query.csv", pattern(r"^\d+\t([^\t\n]+)")),
    Source("sentences", "13luoyu/Transformer-machine-translation", "aa43963320cc", "Tatoeba: CC BY 2.0 FR", "cmn.txt", sayings),
    Source("sentences", "google-research-datasets/wiki-split", "80f5bddf42d1", "CC BY-SA 4.0", "*.tsv", sayings),
    Source(
        "sentences", *TOPICS, "FEVER: CC BY-SA 3.0", "topics/topics.fever.dev.txt topics/topics.beir-v1.0.0-fever.test.tsv.gz", column(1)
    ),
    Source("sentences", "yasumasaonoe/creak", "5e892b28b6da", "MIT", "data/creak/*.json", field("sentence", "explanation")),
    Source(
        "sentences",
        "wenhuchen/Table-Fact-Checking",
        "2ab782ba42b5",
        "MIT; after Wikipedia: CC BY-SA",
        "pairwise_data/*.json",
        pattern(r'\.csv",\s*"([^"]*)",\s*"([^"]*)"'),
    ),
    Source(
        "definitions",
        "globalwordnet/english-wordnet",
        "d94538ad0df3",
        "CC BY 4.0",
        "src/yaml/*.yaml",
        entries("definition", "example"),
        0.4,
    ),
    Source("packages", "Debian 12", "", OWN, "debian.txt", pattern(r"^Description: ([^\n]+)"), get="apt-cache dumpavail >debian.txt"),
    Source("packages", "ScoopInstaller/Main", "5ce3ffd21d4b", "Unlicense", "bucket/*.json", field("description")),
    Source("packages", "awesome-selfhosted/awesome-selfhosted", "2aa7304d793e", "CC BY-SA 3.0", "README.md", markdown),
    Source("packages", "avelino/awesome-go", "c4bc4eb428f4", "MIT", "README.md", markdown),
    Source("packages", "vinta/awesome-python", "25618e21215d", "CC BY 4.0", "README.md", markdown),
    Source("packages", "rust-unofficial/awesome-rust", "94da4bbb42eb", "CC0", "README.md", markdown),
    Source("packages", "public-apis/public-apis", "c045a2eb505f", "MIT", "README.md", pattern(r"^\| \[[^\n|]*\| ([^\n|]+) \|")),
    Source("packages", "awslabs/open-data-registry", "1fd412034f10", "Apache-2.0", "datasets/*.yaml", entries("Name", "Description"), 0.8),
    Source("news", "fordred/wikinews", "0441f5273b87", "Wikipedia's current events: CC BY-SA 4.0", "docs/_posts/*.md", markdown),
    Source("news", "bhargaviparanjape/clickbait", "203d979a8154", "MIT", "dataset/*.gz", column(0)),
    Source("news", *NLTK, "speeches to Congress: public domain", "packages/corpora/state_union.zip", pattern(r"(?:^|\n)([^\n]+)"), 0.6),
    Source("reviews", *NLTK, "B. Liu: CC BY 4.0", "packages/corpora/pros_cons.zip", pattern(r"<(?:Pros|Cons)>(.*?)</")),
    Source("reviews", "varunchitale/SentimentAnalysis", "0fecb52a8f54", "UCI: CC BY 4.0", "*_labelled.txt", column(0)),
    Source("forums", *TOPICS, "CQADupStack, " + STACK_EXCHANGE, "topics/topics.beir-v1.0.0-cqadupstack-*.tsv.gz", column(1)),
    Source("forums", *TOPICS, "BRIGHT: CC BY 4.0, " + STACK_EXCHANGE, "topics/topics.bright-*-original.jsonl.gz", field("query"), 0.5),
    Source("forums", "kevswanberg/beer_tentrr", "9573647bff33", STACK_EXCHANGE, "Posts.xml", posts),
    Source("forums", "Yoav-Shafir/Elasticsearch-Coffee-Search-Engine-JS", "97e93c92aaa3", STACK_EXCHANGE, "Posts.xml", posts),
    Source("forums", "sothakur1/SMDMDataMiningOnStackExchange", "572f53da8010", STACK_EXCHANGE, "Posts.xml", posts),
    Source("forums", "arianeborges/sentiment-analysis-with-python", "9851e7c4c71e", STACK_EXCHANGE, "Posts.xml", posts),
    Source("forums", "GonzaloHirsch/TP-XML", "a11ea4a889ae", STACK_EXCHANGE, "Posts.xml", posts),
    Source(
        "forums",
        "isabelhdias/sentiment-aware-conversational-agent",
        "a4b20ba2a74d",
        "GoEmotions: Apache-2.0",
        "data/goemotions/*.tsv",
        column("text"),
    ),
    Source("forums", "hamzaaacodes/sms-spam-collection", "f3e73e1e74e6", "UCI: CC BY 4.0", "SMSSpamCollection", column(1)),
    Source(
        "forums",
        "jkkummerfeld/irc-disentanglement",
        "82ed04f9627a",
        "CC BY 4.0",
        "data/train/*.ascii.txt data/dev/*.ascii.txt",
        pattern(r"^\[[\d:]+\] <[^>]+> ([^\n]+)"),
        0.25,
    ),
    Source("captions", "lil-lab/nlvr", "18924841aa96", "CC BY 4.0", "nlvr2/data/*.json", field("sentence")),
    Source("captions", "XiaoxiaoGuo/fashion-iq", "f71b16c3b09e", "CDLA", "captions/*.json", field("captions")),
    Source("captions", "cdjkim/audiocaps", "d004db3ea1b0", "MIT", "dataset/*.csv", column("caption")),
    Source("captions", *TOPICS, "CIRR: MIT", "topics/topics.mbeir-cirr_task7.test.jsonl", field("query_txt")),
    Source("captions", *TOPICS, "Wikipedia's images: CC BY-SA", "topics/topics.atomic.validation.image-caption.jsonl", field("title")),
    Source("code", "installed Python packages", "", OWN, "**/*.py", python, 0.6),
    Source(
        "code", "tldr-pages/tldr", "08e345f42639", "CC BY 4.0", "pages/**/*.md", pattern(r"^[->] (?!More information|See also)([^\n]+?):?$")
    ),
    Source("code", "MicrosoftDocs/PowerShell-Docs", "27138b21b41d", "CC BY 4.0", "reference/**/*.md", markdown, 0.3),
    Source("code", "OWASP/CheatSheetSeries", "6b8819da79e0", "CC BY-SA 4.0", "cheatsheets/*.md", markdown),
    Source("titles", *ARXIV, column("title"), 0.15),
    Source("titles", "zygmuntz/goodbooks-10k", "6dd165b555a7", "CC BY-SA 4.0", "books.csv", column("title")),
    Source(
        "titles", "EbookFoundation/free-programming-books", "5b277d20f623", "CC BY 4.0", ENGLISH_BOOKS, pattern(r"^ *\* \[([^\]\n]+)\]")
    ),
    Source("science", *ARXIV, column("abstract"), 0.035),
    Source("science", "allenai/scitldr", "5ccad9c00a60", "Apache-2.0", "SciTLDR-Data/SciTLDR-A/*.jsonl", passage("source", "target"), 0.5),
    Source("medicine", "pubmedqa/pubmedqa", "1cbae8e92f72", "MIT", "data/ori_pqal.json", field("QUESTION", "CONTEXTS", "LONG_ANSWER")),
    Source(
        "medicine",
        "abachaa/MedQuAD",
        "577bd37b96c0",
        "CC BY 4.0",
        "*_QA/*.xml",
        pattern(r"<Question[^>]*>(.*?)</Question>|<Answer>(.*?)</Answer>"),
        0.22,
    ),
    Source("law and business", "NExTplusplus/TAT-QA", "870accc41953", "CC BY 4.0", "dataset_raw/*.json", field("question", "text")),
    Source("law and business", "github/site-policy", "12992597c5d9", "CC0", "Policies/**/*.md", markdown),
    Source("law and business", "Automattic/legalmattic", "2f412dc4995b", "CC BY-SA 4.0", "**/*.md", markdown),
    Source("law and business", "basecamp/policies", "d39f6f17bbd9", "CC BY 4.0", "**/*.md", markdown),
    Source("law and business", "accordproject/cicero-template-library", "f1b93535c677", "Apache-2.0", "src/*/text/sample.md", markdown),
    Source("law and business", "18F/handbook", "1e4955634d03", "public domain", "pages/**/*.md", markdown),
    Source("law and business", "GSA/plainlanguage.gov", "43230773bd7c", "public domain", "**/*.md", markdown),
)


def table() -> str:
    """The sources as a table in Markdown."""
    head = ["| kind | source | commit | terms | files |", "|---|---|---|---|---|"]
    rows = []
    for source in SOURCES:
        version = source.commit or (f"`{source.get}`" if source.get else "")
        files = " ".join(f"`{source.folder}/{path}`" if source.commit else f"`{path}`" for path in source.paths.split())
        rows.append(f"| {source.kind} | {source.repository} | {version} | {source.terms} | {files} |")
    return "\n".join([*head, *rows])
