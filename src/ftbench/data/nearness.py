"""Which on-topic reply goes with which off-topic prompt."""

from collections.abc import Sequence


def assign_near(prompts: Sequence[str], replies: Sequence[str]) -> list[int]:
    """Give every prompt a near reply, no reply oftener than evenly spread reuse needs.

    Nearness is the cosine of TF-IDF vectors. Pairs are taken greedily, nearest first, and a reply is used up after
    ceil(prompts / replies) uses, so that a few that resemble everything do not take over.

    Args:
        prompts: off-topic prompts.
        replies: texts of the on-topic pool (a reply with its own prompt is nearer to more).

    Returns:
        For every prompt an index into `replies`.
    """
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True, stop_words="english", token_pattern=r"(?u)\b\w+\b")
    try:
        vectors = vectorizer.fit_transform([*prompts, *replies])
        similarity = (vectors[: len(prompts)] @ vectors[len(prompts) :].T).toarray()  # [prompts, replies]
    except ValueError:  # no words but stop words anywhere
        similarity = np.zeros((len(prompts), len(replies)))
    uses_left = np.full(len(replies), -(-len(prompts) // len(replies)))
    assigned = np.full(len(prompts), -1)
    waiting = len(prompts)
    for pair in np.argsort(-similarity, axis=None, kind="stable"):
        prompt, reply = divmod(int(pair), len(replies))
        if assigned[prompt] < 0 and uses_left[reply] > 0:
            assigned[prompt] = reply
            uses_left[reply] -= 1
            waiting -= 1
            if not waiting:
                break
    return [int(index) for index in assigned]
