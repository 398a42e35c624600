# ruff: noqa: E501 (one term a line)
"""Write glossary.jsonl: terms of training language models, each asked for and explained shortly."""

import json
import random
from pathlib import Path

SEED = 3

TERMS = """
ablation | An experiment that takes one part away to see what it was worth. If nothing changes, the part was decoration.
activation | A value that a layer computes on its way forward. Training keeps most of them until the backward pass has used them.
activation checkpointing | Throwing activations away and computing them again in the backward pass. It trades about a third more time for much less memory.
Adam | An optimizer that keeps a running mean of each gradient and of its square, and scales every step by them.
AdamW | Adam with weight decay taken off the weights directly instead of being mixed into the gradient.
adapter | A small trainable part added to a frozen model. Several can share one base.
alpha | In LoRA, the number that scales the update. What counts is alpha divided by the rank, or by its root in some variants.
attention | The operation by which each token gathers information from the others, weighted by how well a query matches their keys.
attention head | One of several attention operations that run side by side in a layer, each with its own queries, keys and values.
autocast | Running selected operations in a shorter number format while the weights keep theirs.
base model | The model before fine-tuning. Without instruction tuning it continues text rather than answering.
batch size | How many rows go through the model at once. With accumulation, the optimizer sees several such batches as one.
beam search | Decoding that keeps the few best continuations at each step instead of one.
bfloat16 | A 16-bit number with the range of a 32-bit one and about three decimal digits.
bias | A learned constant added to the output of a layer. It can also mean a systematic lean of data or a model; the context decides.
BOS token | The token that marks the beginning of a sequence. Some models expect it, others never saw one.
byte pair encoding | A way of building a vocabulary by joining the most frequent neighbours again and again.
catastrophic forgetting | Losing old abilities while learning new ones. Mixing in general data and smaller learning rates help.
causal mask | The rule that a token may look only at itself and what came before.
chat template | The exact text that wraps roles and turns. A model tuned under one template answers poorly under another.
checkpoint | A saved state of training from which one can go on or evaluate.
classification head | An output layer that scores classes rather than words.
completion | What the model is asked to write after a prompt.
confidence interval | A range that would hold the true value in a stated share of repeated experiments.
contamination | Test questions that stand in the training data. Scores then measure memory.
context window | The most tokens that a model can take in at once, prompt and answer together.
continued pretraining | Further training on raw text in the way the base was trained, to teach a field or a language.
convergence | The state in which more training hardly lowers the loss.
cosine schedule | A learning rate that falls along half a cosine wave from its peak to nearly zero.
cross-entropy | The average surprise, in nats, at the right token. It is the loss that language models minimise.
curriculum | Showing easier data first. For fine-tuning it seldom beats a good shuffle.
data leakage | Information from the test set that found its way into training.
decoder | A stack of layers that writes text from left to right.
deduplication | Removing rows that repeat, exactly or nearly. Repeats are learned by heart and spoil evaluation.
dequantisation | Turning short codes back into ordinary numbers just before they are used.
distillation | Training a small model on the outputs of a larger one.
divergence | A loss that rises without end, usually because the learning rate is too high.
DoRA | A variant of LoRA that learns the length of each weight column apart from its direction.
dropout | Setting random activations to zero in training, so that no single path can be relied on.
early stopping | Ending when the held-out loss has not improved for a while.
effective rank | How many directions of an update carry real weight. It is often far below the rank that was paid for.
embedding | The vector that stands for a token. The table of all of them is one of the largest weights of a small model.
end-of-turn token | What a chat model writes when it has finished. If training never shows it, answers never stop.
epoch | One pass over the training data.
evaluation loss | The loss on rows that were held out. It tells whether what was learned carries over.
exploding gradient | A gradient so large that one step ruins the weights. Clipping its norm prevents the worst.
few-shot prompt | A prompt that shows some solved examples before the question.
fine-tuning | Training a finished model further on a narrower task or style.
FLOP | One floating-point operation. Training costs about six for each parameter and token.
flash attention | Attention computed in tiles, so that the matrix of scores is never stored whole.
FP16 | A 16-bit number with more digits but far less range than bfloat16. Gradients may underflow without loss scaling.
frozen weight | A weight that training leaves as it is and keeps no gradient for.
full fine-tuning | Training every parameter. It has the most freedom and needs the most memory.
fused kernel | Several operations done in one pass over memory.
generalisation | Doing well on what was not in the training data.
gradient | The direction in which the loss rises fastest. The optimizer goes the other way.
gradient accumulation | Adding the gradients of several small batches before one optimizer step.
gradient clipping | Shortening a gradient whose norm is above a limit, without turning it.
greedy decoding | Always taking the likeliest next token. It is repeatable, and sometimes repetitive.
grid search | Trying every combination of some settings.
ground truth | The answer that counts as right.
hallucination | A fluent statement that nothing supports.
held-out set | Rows kept away from training to measure it.
hidden size | The length of the vector that each token carries through the layers.
hyperparameter | A setting that training does not learn, such as the learning rate.
IA3 | A method that learns only factors by which keys, values and inner activations are scaled.
inference | Using a model without training it.
initialisation | The values that weights have before the first step.
instruction tuning | Fine-tuning on requests and good answers, so that a model follows instructions.
intruder dimension | A new strong singular direction that fine-tuning adds and that resembles none of the old ones.
JSONL | A text file with one JSON value in each line.
KL divergence | How much one distribution differs from another, in nats. It is zero only if they are equal.
KV cache | Keys and values of earlier tokens, kept so that the next one need not compute them again.
label mask | Marks that tell which tokens the loss counts. Usually the prompt is left out.
label smoothing | Giving a little probability to wrong answers in the target, against overconfidence.
layer norm | Shifting and scaling a token's vector to a standard size, with learned factors.
learning rate | How far each step goes. It is the setting most worth tuning.
learning-rate warm-up | Raising the learning rate from near zero in the first steps, while the optimizer's averages fill.
likelihood | The probability that a model gives to a text.
logit | The score of a token before softmax turns scores into probabilities.
LoRA | Training two thin matrices beside a frozen weight, whose product is the update.
loss curve | The loss drawn over steps. Its shape tells of learning rates, bad data and overfitting.
loss spike | A sudden jump of the loss. A single bad batch or too large a step causes it.
low-rank | Expressible as a product of two thin matrices. Such an update moves few directions.
mask | A pattern of which entries count and which do not.
merge | Adding an adapter's update into the base's weights, so that it costs nothing at inference.
mini-batch | The rows that one forward pass takes.
mixed precision | Computing in a short format and keeping the weights in a long one.
mixture of experts | A layer of many parallel parts of which each token uses a few.
model card | The page that says what a model is, what it was trained on, and where it fails.
momentum | A running mean of past gradients that smooths the path.
multi-query attention | Attention in which all heads share one set of keys and values, for a smaller cache.
nat | The unit of information with the natural logarithm. One nat is about 1.44 bits.
NF4 | A 4-bit code whose sixteen values suit weights that are normally distributed.
nucleus sampling | Drawing from the smallest set of tokens whose probabilities reach a given sum.
offloading | Keeping weights or optimizer states in slower memory until they are needed.
optimizer state | What an optimizer remembers of past gradients. For Adam it is two numbers a parameter.
out-of-distribution | Unlike anything in the training data.
overfitting | A training loss that still falls while the held-out loss rises.
packing | Putting several short rows into one, so that no compute goes into padding.
padding | Filler tokens that make the rows of a batch equally long.
paraphrase | The same meaning in other words. Testing with paraphrases shows whether a fact or a phrase was learned.
parameter-efficient fine-tuning | Any method that trains a small share of the parameters, or a few added ones.
perplexity | The exponential of the cross-entropy: among how many equally likely tokens the model seems to choose.
PiSSA | LoRA that starts from the strongest singular directions of the weight instead of from zero.
position id | The number that tells the model where in its sequence a token stands.
prefix tuning | Learning keys and values that are put before every layer's own.
pretraining | The first, longest training, on large amounts of raw text.
prompt tuning | Learning a few embeddings that stand before the prompt, with the model frozen.
pruning | Removing weights that contribute little.
QLoRA | LoRA on a base whose weights are stored in four bits.
quantisation | Storing numbers in fewer bits, with a little error.
random seed | The number from which all random draws of a run follow. The same seed should give the same run.
rank | In LoRA, the inner size of the two matrices. Memory and capacity grow with it.
regularisation | Anything that keeps a model from fitting noise.
residual stream | The vector that each layer reads from and adds to.
RMSNorm | A simpler layer norm that only scales by the root of the mean square.
rotary embedding | Telling positions by turning queries and keys by an angle that grows with them.
rsLoRA | LoRA scaled by alpha over the root of the rank, so that high ranks still learn.
safetensors | A file format for weights that holds numbers only, and so cannot run code when loaded.
sampling temperature | A number that logits are divided by before drawing. Below one answers get safer, above one wilder.
sequence length | The number of tokens in a row.
sharding | Spreading one model's weights or states over several devices.
singular value | How strongly a matrix stretches one of its own directions.
softmax | Turning scores into probabilities that sum to one.
special token | A token that marks structure, such as the end of a turn, rather than text.
step | One update of the weights.
stop sequence | Text at which generation ends.
supervised fine-tuning | Fine-tuning on examples with the wanted answer, by plain cross-entropy.
system prompt | The text before a chat that says how the assistant is to behave.
target modules | The layers that an adapter is attached to.
teacher forcing | Training on the true earlier tokens rather than on what the model would have written.
throughput | Tokens that are processed in a second.
tied embeddings | One table used both for reading tokens and for scoring them.
token | A piece of text that a model reads as one unit: often a word, or a part of one.
tokenizer | The part that cuts text into tokens and joins tokens into text.
transfer learning | Using what was learned on one task for another.
underfitting | A model that has not learned even its training data well.
validation set | Rows used for choosing settings. A final test needs others again.
vanishing gradient | A gradient that shrinks to nothing on its way back through many layers.
vocabulary | All tokens that a tokenizer knows.
weight decay | Pulling weights a little towards zero at each step.
zero-shot | Without any solved example in the prompt.
"""
ASKED = [
    "What is {term}?",
    "Explain {term} in a sentence or two.",
    "What does {term} mean in machine learning?",
    "I keep reading about {term}. What is that?",
    "Define {term}.",
    "{term}: short definition, please.",
    "A colleague mentioned {term}. Can you explain it briefly?",
]


def rows() -> list[dict[str, str]]:
    chance = random.Random(SEED)
    made = []
    for line in TERMS.strip().splitlines():
        term, explained = line.split(" | ")
        for question in chance.sample(ASKED, 2):
            asked = question.format(term=term)
            made.append({"question": asked[0].upper() + asked[1:], "answer": explained})
    chance.shuffle(made)
    return made


if __name__ == "__main__":
    target = Path(__file__).with_name("glossary.jsonl")
    with target.open("w", encoding="utf-8") as file:
        for row in rows():
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
