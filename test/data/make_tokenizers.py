"""Small tokenizers of the kinds that T5 and RoBERTa have, and what the package `tokenizers` makes of some texts."""
import json
from pathlib import Path
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

HERE = Path(__file__).parent / "fixtures" / "tokenizers"
CORPUS = ["A graft is set into a frozen tree.", "The tree lives, and the graft bears fruit.", "Übung macht den Meister, 12 times!"] * 4
TEXTS = ["The frozen tree", "fruit, fruit!", "", "naïve Übung — 日本", "  two  spaces ", "a\nb"]

def save(name, tokenizer, config, pairs):
    folder = HERE / name
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config) + "\n")
    rows = [{"text": t, "ids": tokenizer.encode(t).ids, "plain": tokenizer.encode(t, add_special_tokens=False).ids,
             "decoded": tokenizer.decode(tokenizer.encode(t).ids)} for t in TEXTS]
    rows += [{"text": a, "pair": b, "ids": tokenizer.encode(a, b).ids} for a, b in pairs]
    (folder / "expected.json").write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n")

unigram = Tokenizer(models.Unigram())
unigram.pre_tokenizer = pre_tokenizers.Metaspace()
unigram.decoder = decoders.Metaspace()
unigram.train_from_iterator(CORPUS, trainers.UnigramTrainer(vocab_size=80, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False))
unigram.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)])
save("unigram", unigram, {"pad_token": "<pad>", "eos_token": "</s>", "tokenizer_class": "T5Tokenizer"}, [("The tree", "fruit")])

bpe = Tokenizer(models.BPE())
bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
bpe.decoder = decoders.ByteLevel()
bpe.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=330, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
bpe.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
save("byte_bpe", bpe, {"pad_token": {"content": "<pad>"}, "tokenizer_class": "RobertaTokenizer"}, [("The tree", "fruit")])
