"""Parts of the recaption stage: rules, prompt, guards, and the backends that ask a language model."""
