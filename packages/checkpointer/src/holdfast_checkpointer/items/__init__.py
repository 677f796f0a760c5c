"""One PyTree item on storage: its documents, in holdfast's words and in Orbax's."""
